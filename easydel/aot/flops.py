"""Counts the floating-point operations of a traced program's matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(jaxpr: Any) -> float:
    """Returns the operations of all products on all devices; loops of unknown length count once, Pallas kernels never.

    What the backward pass computes a second time is included.
    """
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        left = equation.invars[0].aval.shape
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[dim] for dim in contracted)
    if name.startswith("ragged_dot"):  # [tokens, in] by [experts, in, out]: each token meets one expert
        left, right = (operand.aval.shape for operand in equation.invars[:2])
        return 2.0 * math.prod(left) * math.prod(right[1:]) / right[1 if right[1] == left[-1] else 2]
    if name == "pallas_call":
        return 0.0
    inner = [flops(part) for part in _jaxprs(equation.params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return equation.params["length"] * sum(inner)
    return (equation.params["mesh"].size if name == "shard_map" else 1) * sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
