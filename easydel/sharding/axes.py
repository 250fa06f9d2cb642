"""The mesh axes that each logical axis of the model is split over."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from easydel.sharding.problems import refuse

AxisName = str | tuple[str, ...] | None

AXES = ("dp", "fsdp", "tp", "sp")
"""The default mesh axes: data, fully sharded data, tensor, sequence parallel."""


def names_in(axis: AxisName) -> tuple[str, ...]:
    """Returns the mesh axes of `axis`, outermost first."""
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis


def axis_of(names: Sequence[str]) -> AxisName:
    """Returns the shortest spelling of `names`: None, the one name, or a tuple."""
    return tuple(names) if len(names) > 1 else next(iter(names), None)


def without(axis: AxisName, names: Collection[str]) -> AxisName:
    """Returns `axis` without the mesh axes `names`."""
    return axis_of([name for name in names_in(axis) if name not in names])


def size_over(names: Iterable[str], mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts of what is split over the mesh axes `names`."""
    return math.prod(mesh.shape[name] for name in names)


@dataclass(frozen=True)
class PartitionAxis:
    """Logical axis -> mesh axis: None (not split), a name, or a tuple of names, outermost first.

    | field                  | splits                                                                               |
    |------------------------|--------------------------------------------------------------------------------------|
    | batch_axis             | activations: the sequences of a batch                                                |
    | sequence_axis          | activations: the tokens of a sequence                                                |
    | activation_hidden_axis | activations: the model dimension between layers                                      |
    | head_axis              | query heads: activations, and those rows of q, columns of o, rows of latent b kernels |
    | kv_head_axis           | key and value heads: activations, and those rows of k and v kernels                  |
    | head_dim_axis          | activations: the channels of one head                                                |
    | hidden_axis            | parameters: the model dimension, or latents opposite the split dimension             |
    | mlp_axis               | the inner dimension of feed-forwards, of each expert and of recurrent mixers         |
    | vocab_axis             | rows of the token embedding and the head, logits                                     |
    | expert_axis            | experts; tokens are sent to them                                                     |

    Where a parameter names one mesh axis twice, its hidden dimension yields to the others, and a later one to an
    earlier one: `PartitionAxis(expert_axis="tp")` splits expert kernels by expert and no longer by `mlp_axis`. By
    default, experts are split where a mesh axis divides their number, otherwise their hidden dimension.
    """

    batch_axis: AxisName = ("dp", "fsdp")
    sequence_axis: AxisName = "sp"
    activation_hidden_axis: AxisName = None
    head_axis: AxisName = "tp"
    kv_head_axis: AxisName = "tp"
    head_dim_axis: AxisName = None
    hidden_axis: AxisName = ("fsdp", "sp")
    mlp_axis: AxisName = "tp"
    vocab_axis: AxisName = "tp"
    expert_axis: AxisName = ("fsdp", "sp")

    def __post_init__(self):
        problems = [f"{name}={axis!r}: {problem}" for name, axis in self._items() if (problem := _malformed(axis))]
        refuse(problems, "an axis is None, the name of a mesh axis, or a tuple of different names")

    def renamed(self, mapping: Mapping[str, str]) -> PartitionAxis:
        """Returns the same with mesh axes renamed; axes that `mapping` lacks keep their name."""
        return PartitionAxis(**{k: axis_of([mapping.get(n, n) for n in names_in(v)]) for k, v in self._items()})

    def resolve(self, names: Sequence[str]) -> PartitionAxis:
        """Returns the same, restricted to the axes `names` of a mesh.

        Fields left at their default follow the mesh: "dp", "fsdp", "tp", "sp" stand for the axes of that name, else
        for the mesh's first, second, third, fourth axis if it has a name of its own, else for nothing. Changed fields
        are taken literally. Raises ShardingError with all that name an axis that the mesh does not have.
        """
        stand_ins = {name: _stand_in(name, place, names) for place, name in enumerate(AXES)}
        resolved, problems = {}, []
        for name, axis in self._items():
            if axis == getattr(PartitionAxis, name):
                resolved[name] = axis_of([found for part in names_in(axis) if (found := stand_ins[part])])
            elif set(names_in(axis)) <= set(names):
                resolved[name] = axis
            else:
                problems.append(f"PartitionAxis({name}={axis!r}) names an axis that the mesh {tuple(names)} lacks")
        refuse(problems, f"use axes out of {list(names)}, or None")
        return PartitionAxis(**resolved)

    def _items(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def _stand_in(name: str, place: int, names: Sequence[str]) -> str | None:
    """Returns the axis of a mesh with axes `names` for the default axis `name`, number `place` of the defaults."""
    if name in names:
        return name
    return names[place] if place < len(names) and names[place] not in AXES else None


def _malformed(axis: object) -> str | None:
    if axis is None or (isinstance(axis, str) and axis):
        return None
    if not isinstance(axis, tuple) or not all(isinstance(name, str) and name for name in axis):
        return "is no axis"
    return "names an axis twice" if len(set(axis)) < len(axis) else None
