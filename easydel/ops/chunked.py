"""Attention by chunks of queries, each with just the keys that it can see.

With a known offset, a prompt's chunks read the keys before them and in their window: half of the scores. With a traced
offset (a decode, a later part of a prompt), a chunk reads the shortest of a few prefixes of the cache that holds all
keys it can see, or its window. Where sequences are packed, a chunk reads the keys since the earliest segment of its
first queries, rounded up in the same way: the work grows with the length of segments, not with that of the sequence.
Only one chunk's scores exist at a time, in the backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easydel.ops.scores import MASKED, Bias, Scores, attend_head
from easydel.ops.sight import Around, is_causal, order_seen
from easydel.ops.stacked import Stacked

# B batch, T queries, S keys, N heads, K kv heads, G query heads per kv head, C head channels, V value channels
CHUNK = 256  # queries; larger ones compute more masked scores, smaller ones make worse matrix products
# Chunks of a long prompt share a program, and then all read the keys of the last chunk in it: with 8 programs 9/16 of
# all scores are computed, where 1/2 is the least possible.
PROGRAMS = 8
SHORTEST_PREFIX = 128
LOOPED_FROM = 32  # queries from which a loop over kv heads beats a batched product on CPU


@dataclass(frozen=True)
class Keys:
    """Keys and values [B, K, S, ...], the first of them in slot `first`, with the biases on their scores.

    `bias`, `starts_BT` and `stacks` are arguments of `attend`. The starts belong to its queries, and with `segments` to
    the keys too, of which there are then as many. `earliest_T` is the least start over all rows.
    """

    k_BKSC: jax.Array
    v_BKSV: jax.Array
    valid_BS: jax.Array | None
    bias: Bias | None
    starts_BT: jax.Array | None = None
    earliest_T: jax.Array | None = None
    segments: bool = False
    first: jax.Array | int = 0
    stacks: tuple[Stacked, Stacked] | None = None

    @property
    def slots(self) -> int:
        return self.k_BKSC.shape[2]

    def cut(self, start: jax.Array | int, size: int) -> Keys:
        """Returns `size` keys and values, from number `start` on."""
        if size == self.slots and self.stacks is None:
            return self
        if self.stacks is None:
            k_BKSC, v_BKSV = (_cut(part, start, size, 2) for part in (self.k_BKSC, self.v_BKSV))
        else:
            k_BKSC, v_BKSV = (part.cut(start, size, 2) for part in self.stacks)
        valid_BS = None if self.valid_BS is None else _cut(self.valid_BS, start, size, 1)
        first = self.first + start
        return replace(self, k_BKSC=k_BKSC, v_BKSV=v_BKSV, valid_BS=valid_BS, first=first, stacks=None)

    def biases(self, start: jax.Array | int, queries: int) -> jax.Array | None:
        """Returns the bias [B or 1, N or 1, queries or 1, S] for `queries` queries from number `start` on."""
        outside = self._outside(start, queries)
        if self.bias is None:
            return outside
        bias = self.bias(start, queries) if callable(self.bias) else self.bias
        if not callable(self.bias) and bias.shape[2] > 1:
            bias = _cut(bias, start, queries, 2)
        bias = _cut(bias, self.first, self.slots, 3)
        return bias if outside is None else bias + outside

    def _outside(self, start: jax.Array | int, queries: int) -> jax.Array | None:
        """Returns [B, 1, queries, S]: MASKED for keys of other segments, or before the first slot that a query sees."""
        if self.starts_BT is None:
            return None
        own_B1T1 = _cut(self.starts_BT, start, queries, 1)[:, None, :, None]
        if not self.segments:
            return jnp.where(own_B1T1 <= self.first + jnp.arange(self.slots), 0.0, MASKED)
        starts_BS = _cut(self.starts_BT, self.first, self.slots, 1)
        return jnp.where(own_B1T1 == starts_BS[:, None, None], 0.0, MASKED)


def attend_chunked(
    q_BTNC: jax.Array,
    keys: Keys,
    scores: Scores,
    offset: jax.Array | int,
    sinks_N: jax.Array | None,
    *,
    looped: bool,
) -> jax.Array:
    """Returns `attend`'s result. `looped` takes one kv head at a time: faster on a CPU, but it allows no mesh."""
    T = q_BTNC.shape[1]
    known = not isinstance(offset, jax.Array)
    looped = looped and T >= LOOPED_FROM

    def chunk(q: jax.Array, keys: Keys, start: jax.Array | int) -> jax.Array:
        return _attend_chunk(q, keys, scores, start, offset, sinks_N, looped)

    if T <= CHUNK:
        return chunk(q_BTNC, _seen(keys, scores, offset, T) if known else keys, 0)
    chunks = -(-T // CHUNK)
    sight = scores.sight
    programs = min(chunks, PROGRAMS) if known and (sight.before is not None or sight.after is not None) else 1
    if keys.starts_BT is not None and keys.segments and is_causal(sight):
        programs = 1  # each chunk chooses for itself how much it reads
        keys = replace(keys, earliest_T=jnp.min(keys.starts_BT, axis=0))  # once: over devices that is a reduction
    outputs = []
    for part in np.array_split(np.arange(chunks), programs):
        start, stop = int(part[0]) * CHUNK, min(int(part[-1] + 1) * CHUNK, T)
        seen = _seen(keys, scores, int(offset) + start, stop - start) if known else keys
        outputs.append(_chunk_by_chunk(q_BTNC[:, start:stop], seen, start, chunk))
    return jnp.concatenate(outputs, axis=1)


def _seen(keys: Keys, scores: Scores, slot: int, queries: int) -> Keys:
    """Returns the keys that queries from slot `slot` on can see."""
    slot, sight = int(slot), scores.sight
    stop = keys.slots if sight.after is None else min(slot + queries + sight.after, keys.slots)
    start = 0 if sight.before is None else max(slot - sight.before, 0)
    return keys.cut(start, stop - start)


Chunk = Callable[[jax.Array, Keys, jax.Array | int], jax.Array]


def _chunk_by_chunk(q_BTNC: jax.Array, keys: Keys, start: int, chunk: Chunk) -> jax.Array:
    """Applies `chunk` to every CHUNK queries, in one program; they are recomputed in the backward pass."""
    B, T, N, C = q_BTNC.shape
    if T <= CHUNK:
        return jax.checkpoint(lambda q: chunk(q, keys, start))(q_BTNC)
    chunks, left = divmod(T, CHUNK)
    whole = chunks * CHUNK
    q_chunks = q_BTNC[:, :whole].reshape(B, chunks, CHUNK, N, C).swapaxes(0, 1)
    starts = start + CHUNK * jnp.arange(chunks)
    one = jax.checkpoint(lambda operands: chunk(operands[0], keys, operands[1]))
    out = jax.lax.map(one, (q_chunks, starts)).swapaxes(0, 1)
    out = out.reshape(B, whole, N, -1)
    if not left:
        return out
    return jnp.concatenate([out, jax.checkpoint(lambda q: chunk(q, keys, start + whole))(q_BTNC[:, whole:])], axis=1)


def _attend_chunk(
    q_BTNC: jax.Array,
    keys: Keys,
    scores: Scores,
    start: jax.Array | int,
    offset: jax.Array | int,
    sinks_N: jax.Array | None,
    looped: bool,
) -> jax.Array:
    """Attends from queries number `start` and following to those of `keys` that they can see."""
    T, slot, sight = q_BTNC.shape[1], offset + start, scores.sight
    if T == 1 and isinstance(slot, jax.Array):
        keys, scores = _masked_once(keys, scores, slot)

    def with_keys(keys: Keys) -> jax.Array:
        return _attend_keys(q_BTNC, keys, scores, start, slot - keys.first, sinks_N, looped)

    if keys.earliest_T is not None:
        return _within_segments(with_keys, keys, scores, start, T)
    if sight.after is None or not isinstance(slot, jax.Array):
        return with_keys(keys)
    if sight.before is not None:
        size = min(sight.before + T + sight.after, keys.slots)
        first = jnp.clip(slot - sight.before - keys.first, 0, keys.slots - size)
        return with_keys(keys.cut(first, size))
    if not isinstance(offset, jax.Array) or sight.after:
        return with_keys(keys)
    return switched(lambda size: with_keys(keys.cut(0, size)), slot + T, prefixes(keys.slots, SHORTEST_PREFIX))


def _masked_once(keys: Keys, scores: Scores, slot: jax.Array) -> tuple[Keys, Scores]:
    """Returns keys whose bias masks all that the query in `slot` does not see, and scores without limits.

    All layers of a step share that bias, which XLA computes once; masks behind a choice of a prefix, each layer anew.
    """
    if keys.bias is not None or keys.starts_BT is not None or keys.valid_BS is None:
        return keys, scores
    seen_TS = order_seen(1, keys.slots, slot - keys.first, scores.sight)
    seen_BS = keys.valid_BS if seen_TS is None else keys.valid_BS & seen_TS
    bias_B11S = jnp.where(seen_BS, 0.0, MASKED)[:, None, None]
    return replace(keys, valid_BS=None, bias=bias_B11S), replace(scores, sight=Around())


def _within_segments(
    with_keys: Callable[[Keys], jax.Array], keys: Keys, scores: Scores, start: jax.Array | int, queries: int
) -> jax.Array:
    """Attends with packed documents: queries from `start` on need only keys since the earliest document among them."""
    assert keys.earliest_T is not None
    first, stop, longest, before = keys.earliest_T[start], start + queries, keys.slots, scores.sight.before
    if before is not None:
        first, longest = jnp.maximum(first, start - before), min(before + queries, longest)

    @partial(jax.checkpoint, static_argnums=0)  # else the backward pass of one branch keeps room for all others'
    def with_last(size: int) -> jax.Array:
        return with_keys(keys.cut(jnp.clip(stop - size, 0, keys.slots - size), size))

    return switched(with_last, stop - first, prefixes(longest, queries))


def prefixes(slots: int, shortest: int) -> list[int]:
    """Returns the lengths that a traced number of slots is rounded up to."""
    sizes = [slots]
    while shortest < slots:
        sizes.insert(-1, shortest)
        shortest *= 2
    return sizes


def switched(with_size: Callable[[int], jax.Array], wanted: jax.Array, sizes: list[int]) -> jax.Array:
    """Calls `with_size` with the first of `sizes` that is not less than `wanted`."""
    which = sum((wanted > size).astype(jnp.int32) for size in sizes[:-1])
    branches = [partial(with_size, size) for size in sizes]
    return jax.lax.switch(which, branches) if len(sizes) > 1 else branches[0]()


def _attend_keys(
    q_BTNC: jax.Array,
    keys: Keys,
    scores: Scores,
    start: jax.Array | int,
    distance: jax.Array | int,
    sinks_N: jax.Array | None,
    looped: bool,
) -> jax.Array:
    B, T, N, C = q_BTNC.shape
    K = keys.k_BKSC.shape[1]
    q_BKGTC = q_BTNC.reshape(B, T, K, N // K, C).transpose(0, 2, 3, 1, 4)
    bias = keys.biases(start, T)
    if bias is not None:  # [B or 1, K or 1, G or 1, T or 1, S]
        bias = bias.reshape(bias.shape[0], *((K, N // K) if bias.shape[1] == N else (1, 1)), *bias.shape[2:])
    sinks_KG = None if sinks_N is None else sinks_N.reshape(K, N // K)

    def row(q_KGTC, k_KSC, v_KSV, valid_S, bias_KGTS):
        def head(q_GTC, k_SC, v_SV, bias_GTS, sinks_G):
            return attend_head(q_GTC, k_SC, v_SV, valid_S, bias_GTS, sinks_G, distance, scores)

        if looped:  # else the backward pass writes and reads again the weights of all heads, not of one
            head = jax.checkpoint(head, prevent_cse=False)
        return each(head, q_KGTC, k_KSC, v_KSV, bias_KGTS, sinks_KG, looped=looped)

    out_BKGTV = each(row, q_BKGTC, keys.k_BKSC, keys.v_BKSV, keys.valid_BS, bias, looped=looped)
    return out_BKGTV.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


def each(function: Callable[..., jax.Array], *parts: jax.Array | None, looped: bool) -> jax.Array:
    """Calls `function` for each entry along the first dimension of `parts`, batched or one by one.

    All calls share the parts that are None or have one entry.
    """
    count = max(len(part) for part in parts if part is not None)
    own = [part is not None and len(part) > 1 for part in parts]
    shared = [None if part is None else part if mine else part[0] for part, mine in zip(parts, own, strict=True)]
    if count == 1:
        return function(*shared)[None]
    if not looped:
        return jax.vmap(function, in_axes=tuple(0 if mine else None for mine in own))(*shared)

    def one(entries: list[jax.Array]) -> jax.Array:
        rest = iter(entries)
        return function(*(next(rest) if mine else part for part, mine in zip(shared, own, strict=True)))

    return jax.lax.map(one, [part for part, mine in zip(shared, own, strict=True) if mine])


def _cut(array: jax.Array, start: jax.Array | int, size: int, dim: int) -> jax.Array:
    if size == array.shape[dim]:
        return array
    if isinstance(start, jax.Array):
        return jax.lax.dynamic_slice_in_dim(array, start, size, dim)
    return jax.lax.slice_in_dim(array, start, start + size, axis=dim)
