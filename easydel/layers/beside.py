"""Several mixers side by side in one layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.part import Handed, HeadSizes, Part, handing, least, received
from easydel.layers.rope import Rope
from easydel.policy import Policy


@dataclass(frozen=True)
class Beside(Part):
    """The sum of the outputs of `parts` for one input. `scales_in` multiply each part's input, `scales` its output.

    As in Falcon-H1 (TII 2025, arXiv:2507.22448), whose layers have attention beside Mamba 2. Parts keep their names.
    """

    name: ClassVar[str] = "mixers"
    parts: tuple[Part, ...]
    scales: tuple[float, ...]
    scales_in: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len({part.name for part in self.parts}) == len(self.parts), "parts are told apart by their names"
        assert len(self.parts) == len(self.scales) == len(self.scales_in)

    def build(self, features: int, policy: Policy) -> BesideLayer:
        return BesideLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        return {part.name: part.cache(batch, length, dtype) for part in self.parts}

    def ropes(self) -> Iterable[Rope]:
        return (rope for part in self.parts for rope in part.ropes())

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (sizes for part in self.parts for sizes in part.head_sizes())

    def shares(self) -> Iterable[tuple[str, Part]]:
        return (shared for part in self.parts for shared in part.shares())

    def hands_on(self) -> Iterable[str]:
        return (name for part in self.parts for name in part.hands_on())

    def reads(self) -> Iterable[str]:
        return (name for part in self.parts for name in part.reads())

    def looks_ahead(self) -> bool:
        return any(part.looks_ahead() for part in self.parts)

    def rewinds(self, length: int, end: int) -> int | None:
        return least(part.rewinds(length, end) for part in self.parts)


class BesideLayer(nnx.Module):
    def __init__(self, record: Beside, features: int, policy: Policy):
        for part in record.parts:
            setattr(self, part.name, part.build(features, policy))
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array | Handed, Any]:
        record, new, values, total = self.record, {}, {}, None
        for part, scale, scale_in in zip(record.parts, record.scales, record.scales_in, strict=True):
            read = x_BTD if scale_in == 1.0 else x_BTD * scale_in
            result, new[part.name] = getattr(self, part.name)(
                read, context, None if cache is None else cache[part.name]
            )
            y_BTD, more = received(result)
            values |= more
            y_BTD = y_BTD if scale == 1.0 else y_BTD * scale
            total = y_BTD if total is None else total + y_BTD
        assert total is not None
        return handing(total, values), None if cache is None else new
