"""Loads models for the commands: from a name or path to local files, and to a model on this machine's devices."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydel.cli.options import Hub, Loading, full_dtype, parse_mesh
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.hub.streamed import Streamed
    from easydel.model import BaseNNXModule


@dataclass(frozen=True)
class Files:
    """The files of a model on this machine, and the directory of the adapters for it, if there are any."""

    path: Path
    adapter: Path | None = None
    follow_links: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` that go with the path."""
        return {"adapter": self.adapter, "follow_links": self.follow_links}

    @property
    def tokenizer(self) -> Path:
        """The place of the tokenizer: adapters may come with one of their own."""
        from easydel.hub.adapters import has_tokenizer

        return self.adapter if self.adapter is not None and has_tokenizer(self.adapter) else self.path


def located(model: str, hub: Hub, adapter: str | None) -> Files:
    """Returns the files of `model`, downloaded if it is a Hub id, and of its adapters, which it may be itself."""
    from easydel.hub import fetch
    from easydel.hub.adapters import located

    return Files(*located(model, adapter, fetch, hub.arguments()), hub.follow_links)


def local_files(model: str, hub: Hub) -> Path:
    """Returns the directory or file of `model`, which must not be adapters, downloaded if it is a Hub id."""
    from easydel.hub import fetch

    return _model_alone(fetch(model, **hub.arguments()))


def _model_alone(path: Path) -> Path:
    from easydel.hub.adapters import is_adapter

    if is_adapter(path):
        hint = "easydel export writes a model that they are part of"
        raise ArgumentError("holds adapters, and no model", file=path, hint=hint)
    return path


def headers(model: str, hub: Hub) -> Path | Streamed:
    """As `local_files`, but weights of a Hub id stay there, for their headers to be read by ranges.

    Those of pytorch_model.bin are downloaded, since a header is all over such a file; stderr says so.
    """
    if hub.local_files_only:
        return local_files(model, hub)
    from easydel.errors import HubError
    from easydel.hub import stream

    try:
        found = stream(model, **hub.arguments(), headers_only=True)
        return _model_alone(found) if isinstance(found, Path) else found
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
        device=jax.local_devices()[0],
        dtype=full_dtype(loading.dtype),
        param_dtype=full_dtype(loading.param_dtype),
        sharding_axis_dims=sizes,
        partition_axis=loading.axes(),
        auto_shard_params=split,
        load_in_8bit=loading.int8,
        load_in_4bit=loading.int4,
        dequantize=loading.dequantize or None,
        scan_layers=loading.scan_layers,
        ignore=loading.ignored,
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
