"""Loads models for the commands: from a name or path to local files, and to a model on this machine's devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydel.cli.options import Hub, Loading, full_dtype, parse_mesh

if TYPE_CHECKING:
    from easydel.hub.streamed import Streamed
    from easydel.model import BaseNNXModule


def local_files(model: str, hub: Hub) -> Path:
    """Returns the directory or file of `model`, downloaded if it is a Hub id."""
    from easydel.hub import fetch

    return fetch(model, **hub.arguments())


def headers(model: str, hub: Hub) -> Path | Streamed:
    """As `local_files`, but weights of a Hub id stay there, for their headers to be read by ranges.

    Those of pytorch_model.bin are downloaded, since a header is all over such a file; stderr says so.
    """
    if hub.local_files_only:
        return local_files(model, hub)
    from easydel.errors import HubError
    from easydel.hub import stream

    try:
        return stream(model, **hub.arguments(), headers_only=True)
    except HubError as error:  # of another format, or out of reach: what was downloaded before may serve
        if "has no safetensors" in error.problem:
            print(f"{model} has neither safetensors nor GGUF: its weights are downloaded to be read", file=sys.stderr)
        return local_files(model, hub)


def is_saved(where: Path | Streamed) -> bool:
    """Whether `save_pretrained` of this project wrote what is there."""
    from easydel.weights.saved import MANIFEST

    path = where if isinstance(where, Path) else where.directory
    return ((path if path.is_dir() else path.parent) / MANIFEST).is_file()


def mesh_sizes(mesh: str | None, devices: int) -> tuple[int, ...]:
    """Returns the sizes that --mesh asks for; without it, all devices along fsdp."""
    from easydel.sharding.mesh import filled

    return filled((1, -1, 1, 1) if mesh is None else parse_mesh(mesh), devices)


def load_model(path: Path, loading: Loading, **more: Any) -> BaseNNXModule:
    """Returns the model at `path`, split over the mesh if that has several devices; stderr gets a table of the split.

    `more` is passed to `from_pretrained`.
    """
    import math

    import jax

    from easydel.auto import AutoEasyDeLModelForCausalLM

    sizes = mesh_sizes(loading.mesh, jax.device_count())
    split = math.prod(sizes) > 1
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(
        path,
        device=jax.devices()[0],
        dtype=full_dtype(loading.dtype),
        param_dtype=full_dtype(loading.param_dtype),
        sharding_axis_dims=sizes,
        partition_axis=loading.axes(),
        auto_shard_params=split,
        load_in_8bit=loading.int8,
        load_in_4bit=loading.int4,
        dequantize=loading.dequantize or None,
        scan_layers=loading.scan_layers,
        from_torch=not is_saved(path),
        **more,
    )
    if split:
        print_placement(model)
    return model


def print_placement(model: BaseNNXModule) -> None:
    """Prints the placement of parameters, as the arrays report it, on stderr."""
    from easydel.cli.where import mesh_text, print_rows, rows_of
    from easydel.sharding import bytes_per_device
    from easydel.tree import flatten

    mesh = model.policy.mesh
    assert mesh is not None
    arrays = flatten(model.params)
    footprints = bytes_per_device(arrays, {path: array.sharding for path, array in arrays.items()})
    kind = mesh.devices.flat[0].device_kind
    print(f"{model.num_params():,} parameters on {mesh.size} x {kind}, mesh {mesh_text(mesh.shape)}", file=sys.stderr)
    print_rows(rows_of(footprints, mesh.shape), sys.stderr)
