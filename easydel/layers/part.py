"""The one protocol for every part of a block: attention, recurrence, feed-forward, cross-attention.

A part is a record. It builds a module that is called as `module(x, context, cache)` and returns its output and the new
cache. Questions about the part (its caches, ropes, heads, ...) are answered by methods of the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from easydel.layers.rope import Rope
from easydel.ops.stacked import Stacked
from easydel.policy import Policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cached:
    """An array that a layer carries from call to call, with the logical axis of each dimension.

    Axes are names of `PartitionAxis` without "_axis" ("batch", "kv_head", "mlp"), or None for a dimension that is
    never split. They travel with the array, so that code that places a cache need not know its layer. Where layers are
    scanned, the array has one more dimension in front, and a layer's own part knows `among` which it lies.
    """

    array: jax.Array
    axes: tuple[str | None, ...] = field(metadata={"static": True})
    among: Stacked | None = None

    @classmethod
    def taken(cls, stacked: Cached, number: jax.Array, policy: Policy) -> Cached:
        """Returns the part of layer `number` in the arrays of several layers."""
        among = Stacked(stacked.array, number, tpu=policy.platform == "tpu")
        return cls(among.own, stacked.axes, among)

    @property
    def stack(self) -> Stacked | None:
        """The arrays of several layers, where this one's was written there and can be read from there."""
        return None if self.among is None or not self.among.holds else self.among

    def put_back(self) -> Cached:
        """Returns the arrays of the layers that this one's was `taken` from, with what it holds now."""
        among = self.among
        assert among is not None
        return Cached(among.arrays if among.holds else among.put(self.array), self.axes)

    def written(self, part: jax.Array, place: jax.Array | int, dim: int) -> Cached:
        """Returns the same with `part` at `place` of a dimension."""
        part = part.astype(self.array.dtype)
        if self.among is None:
            return replace(self, array=jax.lax.dynamic_update_slice_in_dim(self.array, part, place, dim))
        among = self.among.written(part, place, dim)
        return replace(self, array=among.own, among=among)


def empty(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Cached:
    """Returns zeros with these axes, to write a cache into."""
    assert len(shape) == len(axes)
    return Cached(jnp.zeros(shape, dtype), axes)


class HeadSizes(NamedTuple):
    """Sizes of an attention: query heads, key heads, channels of a head, and how far back a cache reaches."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None


class Handed(NamedTuple):
    """The output of a part that hands values on to later layers, with those values by name."""

    y: Any
    values: dict[str, Any]


def handing(y: Any, values: dict[str, Any]) -> Any:
    """Returns the output of a part together with the values that it hands on, if there are any."""
    return Handed(y, values) if values else y


def received(result: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the output in what a part returned, and the values that it hands on."""
    return result if isinstance(result, Handed) else (result, {})


class Part:
    """A record of one part of a block. The answers given here are right for a part that acts on each token alone.

    `name` is the module's place in parameter paths ("self_attn", "mixer", "mlp").
    """

    name: ClassVar[str] = "mlp"

    def build(self, features: int, policy: Policy) -> Any:
        """Returns the module, with parameters that have no values yet."""
        raise NotImplementedError(type(self).__name__)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """Returns an empty cache for `length` tokens: a tree of `Cached`, or None."""
        return None

    def is_fresh(self, cache: Any) -> bool:
        """True if the next call adds arrays to this cache: keys and values made of an encoder's output."""
        return False

    def ropes(self) -> Iterable[Rope]:
        """Lists the ropes whose angles the part's module asks the context for."""
        return ()

    def head_sizes(self) -> Iterable[HeadSizes]:
        """Lists the head counts that a mesh has to divide."""
        return ()

    def repeats_keys(self) -> bool:
        """True if its module repeats key and value heads for the devices that share one (`Policy.kv_copies`)."""
        return False

    def shares(self) -> Iterable[tuple[str, Part]]:
        """Lists parts whose parameters several layers share, with their names in the model."""
        return ()

    def hands_on(self) -> Iterable[str]:
        """Lists the names of the values that the part hands on to later layers."""
        return ()

    def reads(self) -> Iterable[str]:
        """Lists context fields that the part reads and few models need: ids_BT, entered_BTD, prefix_BS, marked_BT."""
        return ()

    def looks_ahead(self) -> bool:
        """True if its output for a token depends on later tokens."""
        return False

    def carries(self, tokens: int) -> str:
        """What brings values from one document to the next if a row of `tokens` holds several; "" if nothing does."""
        return ""

    def rewinds(self, length: int, end: int) -> int | None:
        """Number of slots one can go back, in a cache for `length` tokens of which `end` were ever written.

        None: all slots. A part with a cache answers 0 unless it overrides this.
        """
        return None if self.cache(1, 1, jnp.float32) is None else 0


def least(reaches: Iterable[int | None]) -> int | None:
    """Returns the smallest number of slots; None, which stands for all slots, is the largest."""
    return min((slots for slots in reaches if slots is not None), default=None)


def carriers(record: Any, tokens: int) -> Iterator[str]:
    """Yields what `carries` says of a record and of all records in it."""
    if isinstance(record, tuple):
        for one in dict.fromkeys(record):
            yield from carriers(one, tokens)
    elif is_dataclass(record):
        if (words := getattr(record, "carries", lambda _: "")(tokens)) != "":
            yield words
        for inner in fields(record):
            yield from carriers(getattr(record, inner.name), tokens)
