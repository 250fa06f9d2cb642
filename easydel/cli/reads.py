"""The reads of a load, for people and for programs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from easydel.cli.tables import print_table

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

    from easydel.module import LanguageModel
    from easydel.weights.explain import ReadStep
    from easydel.weights.plan import Plan


def reads_of(
    model: LanguageModel,
    read_plan: Plan,
    int8: Collection[str],
    placed: Mapping[str, NamedSharding],
    mesh: AbstractMesh,
) -> list[ReadStep]:
    """Lists every read of a load by all processes together; parts that several devices hold are read once."""
    import numpy as np

    from easydel.tree import flatten
    from easydel.weights.explain import read_steps

    leaves = flatten(model.params)
    splits = {path: _splits(placed[path].spec, len(leaf.shape), mesh) for path, leaf in leaves.items()}
    return list(read_steps(read_plan, splits, {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()}, int8))


def _splits(spec: PartitionSpec, dims: int, mesh: AbstractMesh) -> list[int]:
    """Returns the number of parts of each dimension."""
    from easydel.sharding.axes import names_in

    axes = [*spec, *[None] * (dims - len(spec))]
    return [prod(mesh.shape[name] for name in names_in(axis)) for axis in axes]


def bytes_by_action(reads: Iterable[ReadStep]) -> dict[str, int]:
    """Returns the bytes of files for each action on them."""
    totals: dict[str, int] = {}
    for step in reads:
        totals[step.action] = totals.get(step.action, 0) + step.nbytes
    return totals


def facts_of(step: ReadStep) -> dict[str, Any]:
    return {
        "parameter": step.path,
        "index": [[part.start, part.stop] for part in step.index],
        "tensor": step.tensor,
        "file": str(step.file),
        "start": step.start,
        "stop": step.stop,
        "bytes": step.nbytes,
        "action": step.action,
    }


def print_reads(reads: Iterable[ReadStep]) -> None:
    columns = ("parameter", "file", "first byte", "end", "bytes", "action")
    rows = [
        (
            f"{step.path}[{', '.join(f'{part.start}:{part.stop}' for part in step.index)}]",
            step.file.name,
            "" if step.start is None else str(step.start),
            "" if step.stop is None else str(step.stop),
            str(step.nbytes),
            step.action,
        )
        for step in reads
    ]
    print_table(columns, rows, numbers=("first byte", "end", "bytes"))
