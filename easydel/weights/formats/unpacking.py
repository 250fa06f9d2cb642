"""A checkpoint of packed tensors while a reader puts the matrices that they stand for in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.problems import Problems
from easydel.weights.sources import TensorSource


@dataclass
class Unpacking:
    """The tensors of a checkpoint, those that a reader has taken so far, and what it made of them.

    Attributes:
        tensors: all tensors of the files by name.
        settings: the entry of config.json (or of another file) that says how weights are quantized.
        metadata: the text entries of the weight files.
        file: the file that lists the tensors, for errors.
        config: the file of the settings, for errors.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]
    file: Path
    config: Path | None = None
    made: dict[str, TensorSource] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    problems: list[tuple[Tensor, str]] = field(default_factory=list)

    def ending(self, suffix: str) -> Iterator[tuple[str, Tensor]]:
        """Yields (name without the suffix, tensor) of all tensors whose names end so."""
        for name, tensor in self.tensors.items():
            if name.endswith(suffix):
                yield name.removesuffix(suffix), tensor

    def take(self, *names: str) -> Tensor | None:
        """Returns the tensor of the first of these names that is there, or None. It is no weight of its own then."""
        found = next((name for name in names if name in self.tensors), None)
        if found is None:
            return None
        self.taken.add(found)
        return self.tensors[found]

    def drop(self, *suffixes: str) -> None:
        """Leaves out all tensors whose names end so: they concern activations, or repeat what others say."""
        self.taken.update(name for name in self.tensors if name.endswith(suffixes))

    def small(self, tensor: Tensor, *, needed: bool = False) -> np.ndarray | None:
        """Returns the numbers of a small tensor. From another machine they come only if `needed`: each is a request."""
        return tensor.read() if needed or tensor.source is None else None

    def put(self, name: str, tensor: TensorSource) -> None:
        """Puts a matrix in the place of the tensors that were taken for it."""
        self.made[name] = tensor

    def refuse(self, tensor: Tensor, problem: str) -> None:
        """Notes that `tensor` cannot be read; `finished` raises one error for all."""
        self.problems.append((tensor, problem))

    def finished(self) -> dict[str, TensorSource]:
        """Returns the matrices, and the tensors that are no part of one. CheckpointError lists what was refused."""
        files = {tensor.file for tensor, _ in self.problems}
        problems = Problems(files.pop() if len(files) == 1 else self.file)
        for tensor, problem in self.problems:
            problems.add(problem, tensor.name)
        problems.check(hint="the checkpoint is damaged, or quantized in another way than its config says")
        return {name: tensor for name, tensor in self.tensors.items() if name not in self.taken} | self.made


Reader = Callable[[Unpacking], None]
