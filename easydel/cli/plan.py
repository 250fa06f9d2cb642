"""`easydel plan`: the memory that a model would need on each device of a mesh, computed from headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from easydel.cli.compiled import Compiling, report
from easydel.cli.distributed import Processes
from easydel.cli.hosts import host_facts, print_host
from easydel.cli.meshes import Placed
from easydel.cli.models import headers
from easydel.cli.options import Hub, Json, Loading, Model, full_dtype, parse_mesh
from easydel.cli.reads import Reads, facts_of, print_reads
from easydel.cli.tables import parse_size, print_facts, size
from easydel.cli.where import Row, mesh_text, print_rows, rows_of
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh, NamedSharding

    from easydel.forms import Form
    from easydel.hub.streamed import Streamed
    from easydel.model import BaseNNXModule
    from easydel.weights.plan import Plan


class Optimizer(StrEnum):
    """The optimizer, which decides how many moments training keeps for each parameter."""

    adamw = "adamw"
    sgd = "sgd"
    none = "none"


MOMENTS = {Optimizer.adamw: 2, Optimizer.sgd: 0}
NOT_COUNTED = "activations, logits and XLA's temporary memory come on top"

LENGTH = 2048


@dataclass(frozen=True)
class Costs:
    """Bytes on each device."""

    parameters: int
    gradients: int
    optimizer: int
    cache: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.cache


def plan(
    model: Model,
    hub: Hub,
    loading: Loading,
    compiling: Compiling,
    processes: Processes,
    device_memory: Annotated[str | None, typer.Option(help="Memory of each device, such as 16GiB.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    length: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens, prompt and answer. Default: {LENGTH}, or the context.")
    ] = None,
    optimizer: Annotated[Optimizer, typer.Option(help="Plan training with it; none: generation.")] = Optimizer.none,
    hosts: Annotated[int, typer.Option(min=1, help="Machines that share the devices, and load together.")] = 1,
    reads: Annotated[bool, typer.Option(help="List every read: parameter, tensor, file, bytes, what is done.")] = False,
    as_json: Json = False,
) -> None:
    """Compute the memory on each device of a mesh, list replicated parameters with the reasons, and check that it fits.

    With --compile, the TPU compiler tells what a training or decoding step would hold, send and take at least.

    No weights are read, and the devices of the mesh need not exist. The exit code is 0 whether it fits or not.
    """
    memory = None if device_memory is None else parse_size(device_memory)
    if optimizer is not Optimizer.none and (loading.int8 or loading.int4):
        name = "int8" if loading.int8 else "int4"
        raise ArgumentError(f"{name} parameters are not trained", hint=f"leave out --{name} or --optimizer")
    where = headers(model, hub)
    path = where if isinstance(where, Path) else where.directory
    from easydel.sharding import bytes_per_device
    from easydel.stored import forms_of
    from easydel.tree import flatten

    if compiling.compile is not None:
        if hosts > 1:
            raise ArgumentError("--hosts is about loading, and --compile is not", hint="leave out one of them")
        from easydel.aot.topology import topology_mesh
        from easydel.arguments import remat_of

        def built_for(placed: Placed) -> BaseNNXModule:
            topology = topology_mesh(compiling.compile or "", placed.dims)
            chosen = replace(loading, split_residual=placed.split_residual)
            return _model(where, chosen, topology, remat_of(compiling.remat))[0]

        dims = (1, -1, 1, 1) if loading.mesh is None else parse_mesh(loading.mesh)
        given = Placed(dims, loading.split_residual, loading.replicate_kv)
        report(built_for, given, compiling, as_json=as_json)
        return
    mesh = _mesh(loading.mesh)
    built, read_plan, rounded = _model(where, loading, mesh, follow_links=hub.follow_links)
    forms = forms_of(built)
    if optimizer is not Optimizer.none and forms:
        codes = " and ".join(sorted({form.code.name for form in forms.values()}))
        raise ArgumentError(
            f"it is stored as {codes}, and {codes} parameters are not trained", hint="add --dequantize", file=path
        )
    placed, losses = _placed(built, flatten(built.params), mesh)
    rows = rows_of(bytes_per_device(flatten(built.params), placed, losses), mesh.shape)
    load = Reads.of(built, read_plan, rounded, placed, mesh)
    host = None if hosts == 1 else host_facts(read_plan, flatten(built.params), placed, rounded, mesh, hosts)
    tokens = length or min(LENGTH, built.record.max_length or LENGTH)
    parameters = sum(row.device_bytes for row in rows)
    moments = MOMENTS.get(optimizer)
    costs = Costs(
        parameters=parameters,
        gradients=0 if moments is None else parameters,
        optimizer=parameters * (moments or 0),
        cache=cache_bytes(built, mesh, batch, tokens) if moments is None else 0,
    )
    facts = {
        "path": str(path),
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "parameters": built.num_params(),
        "stored": stored_bits(built),
        "rows": [asdict(row) for row in rows],
        "experts": experts_over(placed, mesh.shape),
        "file_bytes": load.bytes_by_action(),
        "host": host,
        "batch": batch,
        "length": tokens,
        "device_bytes": {**asdict(costs), "total": costs.total},
        "device_memory": memory,
        "fits": None if memory is None else costs.total <= memory,
    }
    if as_json:
        print(json.dumps(facts | ({"reads": [facts_of(step) for step in load.steps()]} if reads else {}), indent=2))
        return
    _print(facts, rows, costs)
    if reads:
        print()
        print_reads(load.steps())


def _mesh(text: str | None) -> AbstractMesh:
    """Returns the mesh without devices. This machine's devices are counted only where the sizes depend on them."""
    import jax

    from easydel.sharding import AXES
    from easydel.sharding.mesh import filled

    sizes = (1, -1, 1, 1) if text is None else parse_mesh(text)
    return jax.sharding.AbstractMesh(filled(sizes, jax.device_count()) if -1 in sizes else sizes, AXES)


def _model(
    where: Path | Streamed,
    loading: Loading,
    mesh: AbstractMesh | Mesh,
    remat: str | None = None,
    *,
    follow_links: bool = False,
) -> tuple[BaseNNXModule, Plan, Mapping[str, Form]]:
    """The model without values, checked against the checkpoint and the mesh as loading would.

    Also returns the plan of its weights, and the parameters that would be quantized while reading.
    """
    import jax
    import jax.numpy as jnp

    from easydel.auto import choose_family
    from easydel.loading import build_model
    from easydel.policy import Policy
    from easydel.prepare import plan_for
    from easydel.quantize import Int4, Int8
    from easydel.source import language_model, open_source

    policy = Policy(
        dtype=jnp.dtype(full_dtype(loading.dtype)),
        param_dtype=jnp.dtype(full_dtype(loading.param_dtype)),
        mesh=cast(jax.sharding.Mesh, mesh),  # checks and shapes use nothing that an abstract mesh lacks
        axes=loading.axes().resolve(mesh.axis_names),
        scan_layers=loading.scan_layers,
        remat=remat,
    )
    source = language_model(open_source(where, saved=False, follow_links=follow_links))
    family = choose_family(source.config, encoder_decoder=False)
    model = build_model(family, family.configured(source.config), policy, source)
    quantize = Int8() if loading.int8 else Int4() if loading.int4 else None

    def split(leaves: Mapping[str, Any]) -> dict[str, NamedSharding]:
        return _placed(model, leaves, mesh)[0]

    dequantize = loading.dequantize or None
    return model, *plan_for(model, source, quantize, dequantize=dequantize, split=split, ignore=loading.ignored)


def _placed(
    model: BaseNNXModule, leaves: Mapping[str, Any], mesh: AbstractMesh | Mesh
) -> tuple[dict[str, NamedSharding], dict[str, str]]:
    import jax

    from easydel.sharding import default_rules, shardings

    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    rules = default_rules(model.policy.axes)
    return shardings(shapes, cast(jax.sharding.Mesh, mesh), rules, strict=False)


def stored_bits(model: BaseNNXModule) -> dict[str, dict[str, float]]:
    """Returns for each dtype of codes, and of floats, the number of values and the bits of each, with its scales."""
    import numpy as np

    from easydel.forms import BESIDE
    from easydel.stored import storable
    from easydel.tree import flatten

    leaves, places = flatten(model.params), storable(model)
    beside = {f"{path}{end}": path for path in places for end in BESIDE}
    found: dict[str, list[int]] = {}
    for path, leaf in leaves.items():
        owner = places.get(beside.get(path, path))
        form = None if owner is None else owner.form
        sums = found.setdefault(str(leaf.dtype) if form is None else form.code.name, [0, 0])
        sums[1] += leaf.size * np.dtype(leaf.dtype).itemsize
        if path not in beside:
            sums[0] += leaf.size if owner is None else prod(owner.shape)
    return {name: {"numbers": count, "bits": round(8 * size / count, 2)} for name, (count, size) in found.items()}


def experts_over(placed: Mapping[str, NamedSharding], sizes: Mapping[str, int]) -> list[str] | None:
    """Returns the mesh axes that experts are split over, so that they stay where they are; None if there are none."""
    from easydel.sharding.axes import names_in

    specs = [sharding.spec for path, sharding in placed.items() if path.endswith("/experts/down_proj/kernel")]
    if not specs or prod(sizes.values()) == 1:
        return None
    return [axis for axis in names_in(specs[0][-3]) if sizes[axis] > 1]


def cache_bytes(model: BaseNNXModule, mesh: AbstractMesh, batch: int, length: int) -> int:
    """Returns the bytes on each device of the cache that `generate` makes, split as its arrays declare."""
    import jax
    import numpy as np

    from easydel.generate.cache_lengths import cache_lengths, mesh_axes
    from easydel.layers.part import Cached
    from easydel.sharding.placement import fit

    if model.record.looks_ahead:
        return 0
    slots = cache_lengths(length, 0)[-1]
    layers = jax.eval_shape(lambda: model.init_cache(batch, slots))["layers"]
    total = 0
    for cached in jax.tree.leaves(layers, is_leaf=lambda leaf: isinstance(leaf, Cached)):
        leaf = cached.array
        spec = fit(leaf.shape, mesh_axes(cached, model.policy), cast(jax.sharding.Mesh, mesh))
        part = jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape)
        total += prod(part) * np.dtype(leaf.dtype).itemsize
    return total


def _print(facts: Mapping[str, Any], rows: list[Row], costs: Costs) -> None:
    from easydel.weights.explain import ACTIONS

    print(f"{facts['parameters']:,} parameters on {facts['devices']} devices, mesh {mesh_text(facts['mesh'])}")
    kinds = [f"{found['numbers']:,} as {name} ({found['bits']:g} bits)" for name, found in facts["stored"].items()]
    print(f"stored: {', '.join(kinds)}")
    print_rows(rows)
    if facts["experts"] is not None:
        stay = " x ".join(f"{axis}={facts['mesh'][axis]}" for axis in facts["experts"])
        print(
            f"experts: split over {stay}, tokens are sent to them"
            if stay
            else "experts: not split, kernels are gathered"
        )
    if copied := [row for row in rows if row.copies > 1]:
        print("\nheld more than once:")
        for row in copied:
            print(f"  {row.group} ({' '.join(row.names)}): {row.copies} copies of each part: {row.why}")
    what = {"cache": f"cache, {facts['batch']} x {facts['length']} tokens", "optimizer": "moments of the optimizer"}
    print("\non each device:")
    print_facts({f"  {what.get(name, name)}": size(count) for name, count in facts["device_bytes"].items() if count})
    print(f"  ({NOT_COUNTED})")
    print("\nbytes of files:")
    print_facts({f"  {action}": f"{size(count)}, {ACTIONS[action]}" for action, count in facts["file_bytes"].items()})
    if facts["host"] is not None:
        print_host(facts["host"])
    if facts["fits"] is not None:
        left = facts["device_memory"] - costs.total
        state = f"fits: {size(left)} left" if left >= 0 else f"does not fit: {size(-left)} too much"
        print(f"\n{state}, of {size(facts['device_memory'])}")
