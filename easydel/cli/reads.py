"""The reads of a load, for people and for programs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydel.cli.tables import print_table

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, NamedSharding

    from easydel.module import LanguageModel
    from easydel.weights.explain import ReadStep
    from easydel.weights.plan import Plan


@dataclass(frozen=True)
class Reads:
    """The reads of a load by all processes together; parts that several devices hold are read once."""

    plan: Plan
    splits: Mapping[str, list[int]]
    dtypes: Mapping[str, Any]
    rounded: Collection[str]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        read_plan: Plan,
        rounded: Collection[str],
        placed: Mapping[str, NamedSharding],
        mesh: AbstractMesh,
    ) -> Reads:
        import numpy as np

        from easydel.tree import flatten

        leaves = flatten(model.params)
        splits = {path: _splits(placed[path], len(leaf.shape), mesh) for path, leaf in leaves.items()}
        return cls(read_plan, splits, {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()}, rounded)

    def steps(self) -> Iterator[ReadStep]:
        """Yields every read."""
        from easydel.weights.explain import read_steps

        return read_steps(self.plan, self.splits, self.dtypes, self.rounded)

    def bytes_by_action(self) -> Mapping[str, int]:
        """Returns the bytes of files for each action on them."""
        from easydel.weights.explain import bytes_by_action

        return bytes_by_action(self.plan, self.splits, self.dtypes, self.rounded)


def _splits(sharding: NamedSharding, dims: int, mesh: AbstractMesh) -> list[int]:
    """Returns the number of parts of each dimension."""
    from easydel.sharding.axes import names_in, size_over
    from easydel.sharding.hosts import spec_of

    return [size_over(names_in(axis), mesh) for axis in spec_of(sharding, dims)]


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
