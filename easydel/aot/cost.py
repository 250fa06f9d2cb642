"""What the compiler says a program costs, and the time that no chip can go below."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from easydel.aot.flops import flops
from easydel.aot.hlo import Collective, collectives
from easydel.aot.topology import Chip

_NEEDS = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM")
NEEDED = "needed"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Cost:
    """Costs of one run of a program on each chip.

    `held` are bytes of memory by kind: its arguments, and `temporaries`. `flops` are those of products, `touched` the
    bytes of memory that it has to read or write, `sent` what goes to other chips; None if the compiler does not tell.
    If the program did not fit, the compiler gave up, and `held` has the one kind that it then told: `needed`.
    """

    held: Mapping[str, int]
    flops: float
    touched: int
    sent: list[Collective] | None

    @property
    def fits(self) -> bool:
        """True if the compiler found room for the program."""
        return NEEDED not in self.held

    @property
    def total(self) -> int:
        """Bytes of memory on each chip."""
        return sum(self.held.values())

    @property
    def wire(self) -> int | None:
        """Bytes that each chip sends."""
        return None if self.sent is None else sum(one.total for one in self.sent)

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Returns the least seconds that products, memory and links take, each alone and at the chip's peak."""
        known = {"products": self.flops / chip.flops, "memory": self.touched / chip.bandwidth}
        return known | ({} if self.wire is None else {"links": self.wire / chip.sends})


def cost_of(traced: jax.stages.Traced, arguments: Mapping[str, Any], sizes: Mapping[str, int], touched: int) -> Cost:
    """Compiles a program for a mesh with axes of these `sizes`. `arguments` are trees of split shapes, by kind."""
    chips = int(np.prod(list(sizes.values())))
    own = flops(traced.jaxpr.jaxpr) / chips
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := _NEEDS.search(str(error))) is None:
            raise
        return Cost({NEEDED: int(float(found[1]) * _UNITS[found[2].upper()])}, own, touched, None)
    memory = compiled.memory_analysis()
    assert memory is not None
    held = {kind: bytes_on_each(tree) for kind, tree in arguments.items()}
    known = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    rest = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + max(known - sum(held.values()), 0)
    return Cost({**held, "temporaries": rest}, own, touched, _sent(compiled, sizes))


def bytes_on_each(tree: Any) -> int:
    """Returns the bytes of a tree of split shapes on each device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _sent(compiled: jax.stages.Compiled, sizes: Mapping[str, int]) -> list[Collective] | None:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # as for large programs of v5p
        return None
    return None if text is None else collectives(text, sizes)
