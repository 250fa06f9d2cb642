"""Parts of files on another machine, fetched as a whole: where any slice lies all over a file, one fetch serves all."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.weights.expressions import Index


@dataclass(frozen=True, eq=False)
class Held:
    """An array in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def read(self, index: Index = ()) -> np.ndarray:
        return self.array[index]


def at_hand(part: Any) -> Any:
    """Returns the same part with the tensors that it is made of in memory, if they are on another machine."""
    if isinstance(part, Tensor):
        return part if part.source is None else Held(part.read())
    if not is_dataclass(part) or isinstance(part, type):
        return part
    inner = {field.name: getattr(part, field.name) for field in fields(part)}
    return replace(part, **{name: at_hand(of) for name, of in inner.items() if is_dataclass(of)})
