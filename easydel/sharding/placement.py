"""Splits arrays of given shapes over a mesh, and reports which stay whole and why."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from easydel.errors import ArgumentError, ShardingError
from easydel.sharding.axes import AxisName, PartitionAxis, axis_of, names_in, size_over
from easydel.sharding.mesh import divisors
from easydel.sharding.problems import refuse
from easydel.sharding.rules import UNMATCHED_HINT, Rules, Shape, default_rules, matched, unknown_axes

logger = logging.getLogger(__name__)
MUCH = 0.5  # of all numbers


class Typed(Protocol):
    """An array, or a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class Footprint:
    """The memory of one parameter: its size, each device's part, and the reason for more than one copy, if any."""

    path: str
    spec: PartitionSpec
    total_bytes: int
    device_bytes: int
    copies: int
    why: str


@dataclass(frozen=True)
class Placement:
    """The placement of parameters: `sharding` for each, then `functions` (by path) are applied as they arrive."""

    sharding: Callable[[Mapping[str, Typed]], Mapping[str, jax.sharding.Sharding]]
    functions: Mapping[str, Callable[[jax.Array], jax.Array]]

    @classmethod
    def by_rules(cls, mesh: Mesh, axes: PartitionAxis, rules: Rules | None) -> Placement:
        """Returns the placement on the mesh by `rules`, or by the default rules, which serve every family."""

        def by_rules(arrays: Mapping[str, Typed]) -> Mapping[str, jax.sharding.Sharding]:
            shapes = {path: array.shape for path, array in arrays.items()}
            found = default_rules(axes) if rules is None else rules
            splits, losses = shardings(shapes, mesh, found, strict=rules is not None)
            _tell(losses, arrays, mesh)
            return splits

        return cls(by_rules, {})

    @classmethod
    def on_device(cls, device: Any, functions: Mapping[str, Callable[[jax.Array], jax.Array]]) -> Placement:
        """Returns the placement on one device, and from there wherever `functions` put the parameters."""
        single = jax.sharding.SingleDeviceSharding(device)
        return cls(lambda arrays: dict.fromkeys(arrays, single), functions)

    def shardings_of(self, arrays: Mapping[str, Typed]) -> Mapping[str, jax.sharding.Sharding]:
        """Returns the sharding of each parameter. Raises ArgumentError if there are functions for other paths."""
        found = self.sharding(arrays)
        if unknown := sorted(set(self.functions) - set(arrays)):
            raise ArgumentError(
                f"shard_fns has paths that are no parameters: {', '.join(unknown[:8])}",
                hint=f"parameters look like {next(iter(arrays))}",
            )
        return found

    def placed(self, path: str, array: jax.Array) -> jax.Array:
        """Returns the array as placed by the function for `path`. ArgumentError if that returns something else."""
        if path not in self.functions:
            return array
        placed = self.functions[path](array)
        if not isinstance(placed, jax.Array) or placed.shape != array.shape:
            kind = (
                f"an array of shape {placed.shape}" if isinstance(placed, jax.Array) else f"a {type(placed).__name__}"
            )
            raise ArgumentError(f"shard_fns[{path!r}] returned {kind}, expected the array that it was given, placed")
        return placed


def _tell(losses: Mapping[str, str], arrays: Mapping[str, Typed], mesh: Mesh) -> None:
    """Logs that devices hold copies of what they could not split; as a warning if that is most of the model."""
    if not losses:
        return
    size = {path: math.prod(array.shape) for path, array in arrays.items()}
    share = sum(size[path] for path in losses) / max(sum(size.values()), 1)
    told = "mesh %s: %d parameters (%.0f%% of all numbers) are split less than they might be, as %s"
    level = logging.WARNING if share > MUCH else logging.INFO
    logger.log(level, told, _described(mesh.axis_names, mesh), len(losses), 100 * share, next(iter(losses.values())))


def flat_functions(functions: Mapping[Any, Any], prefix: str = "") -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Returns `shard_fns` by path; its keys are path tuples, "a/b/c", or nested dicts."""
    flat: dict[str, Callable[[jax.Array], jax.Array]] = {}
    for key, value in functions.items():
        path = prefix + ("/".join(map(str, key)) if isinstance(key, tuple) else str(key))
        if isinstance(value, Mapping):
            flat |= flat_functions(value, f"{path}/")
        elif callable(value):
            flat[path] = cast(Callable[[jax.Array], jax.Array], value)
        else:
            raise ArgumentError(f"shard_fns[{path!r}] is a {type(value).__name__}, expected a function of one array")
    return flat


def shardings(
    shapes: Mapping[str, Shape], mesh: Mesh, rules: Rules, *, strict: bool
) -> tuple[dict[str, NamedSharding], dict[str, str]]:
    """Returns the sharding of each parameter, and a sentence for each that is split less than its rule says.

    A dimension that its mesh axes do not divide is split over the first few that do. With `strict` (the rules are the
    user's) that is an error instead. Raises ShardingError with all parameters that no rule matches or fits, and all
    rules that name an axis which the mesh lacks.
    """
    specs, problems = matched(shapes, rules)
    unknown = unknown_axes(rules, mesh.axis_names)
    fitting: dict[str, PartitionSpec] = {}
    indivisible: list[str] = []
    losses: dict[str, str] = {}
    for path, spec in specs.items() if not unknown else ():
        fitting[path] = fit(shapes[path], spec, mesh)
        if lost := _lost(shapes[path], spec, fitting[path], mesh):
            indivisible.append(f"{path}: {'; '.join(lost)}")
            losses[path] = f"{path}: {'; '.join(f'{problem}: {left}' for problem, left in lost.items())}"
    refuse([*unknown, *problems, *(indivisible if strict else ())], UNMATCHED_HINT if problems else None)
    return {path: NamedSharding(mesh, spec) for path, spec in fitting.items()}, losses


def fit(shape: Shape, axes: Iterable[AxisName], mesh: Mesh) -> PartitionSpec:
    """Returns `axes`, one per dimension of `shape`, without those that do not divide it or split an earlier one."""
    used: set[str] = set()
    entries = []
    for dim, axis in zip(shape, axes, strict=True):
        names = [name for name in names_in(axis) if name not in used]
        while names and dim % size_over(names, mesh):
            names.pop()
        used.update(names)
        entries.append(axis_of(names))
    return PartitionSpec(*entries)


def check_heads(heads: int, kv_heads: int, mesh: Mesh, axis: PartitionAxis) -> None:
    """Raises ShardingError if the mesh would split a head: channels of one head belong together."""
    resolved = axis.resolve(mesh.axis_names)
    problems = [
        f"{name}s={count} cannot be split over {_described(names, mesh, all_axes=True)}; use {' x '.join(names)} in "
        f"{divisors(count)} or PartitionAxis({name}_axis=None) to replicate them"
        for name, count, names in (
            ("head", heads, names_in(resolved.head_axis)),
            ("kv_head", kv_heads, names_in(resolved.kv_head_axis)),
        )
        if count % size_over(names, mesh)
    ]
    refuse(problems)


def constrain(x: jax.Array, mesh: Mesh | None, axes: Sequence[AxisName]) -> jax.Array:
    """Splits `x` over `axes`, one per dimension, where they divide it; inside and outside of `jit`.

    Without a mesh, or with one device, nothing happens. A mesh axis that is named twice splits the first dimension.
    """
    if mesh is None or mesh.size == 1:
        return x
    if missing := sorted({name for axis in axes for name in names_in(axis)} - set(mesh.axis_names)):
        raise ShardingError(
            f"the mesh {mesh.axis_names} has no axes {missing}", hint="use PartitionAxis.resolve(mesh.axis_names)"
        )
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fit(x.shape, axes, mesh)))


def bytes_per_device(
    arrays: Mapping[str, Typed], shardings: Mapping[str, NamedSharding], losses: Mapping[str, str] | None = None
) -> list[Footprint]:
    """Returns the memory of each parameter on each device, the largest first; `losses` are those of `shardings`.

    A device's total is the sum of `device_bytes`: all devices hold the same amount.
    """
    rows = [_footprint(path, array, shardings[path], (losses or {}).get(path)) for path, array in arrays.items()]
    return sorted(rows, key=lambda row: row.device_bytes, reverse=True)


def _footprint(path: str, array: Typed, sharding: NamedSharding, loss: str | None) -> Footprint:
    item = np.dtype(array.dtype).itemsize
    mesh, spec = sharding.mesh, sharding.spec
    used = {name for axis in spec for name in names_in(axis)}
    unused = [name for name, size in mesh.shape.items() if size > 1 and name not in used]
    why = loss or f"{path}: its rule does not use {_described(unused, mesh)}"
    return Footprint(
        path=path,
        spec=spec,
        total_bytes=math.prod(array.shape) * item,
        device_bytes=math.prod(sharding.shard_shape(array.shape)) * item,
        copies=size_over(unused, mesh),
        why=why if unused else "",
    )


def _lost(shape: Shape, wanted: PartitionSpec, kept: PartitionSpec, mesh: Mesh) -> dict[str, str]:
    """Maps the problem of each dimension that is split less than `wanted` to the rest of its split."""
    lost = {}
    used = {name for axis in kept for name in names_in(axis)}
    for number, (dim, before, after) in enumerate(zip(shape, wanted, kept, strict=True)):
        if dim % size_over(names_in(before), mesh) and not used.issuperset(names_in(before)):
            split = _described(names_in(after), mesh)
            problem = f"dim {number} ({dim}) is not divisible by {_described(names_in(before), mesh)}"
            lost[problem] = f"split over {split} only" if split else "replicated"
    return lost


def _described(names: Sequence[str], mesh: Mesh | AbstractMesh, *, all_axes: bool = False) -> str:
    """Returns sizes such as "fsdp=4 x tp=2"; axes of size 1 only with `all_axes`."""
    return " x ".join(f"{name}={mesh.shape[name]}" for name in names if all_axes or mesh.shape[name] > 1)
