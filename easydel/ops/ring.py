"""Attention of a sequence that is split over devices: keys and values go round, from device to device.

After Liu et al. 2023, arXiv:2310.01889. Each device keeps its queries and sees the keys of all others in turn, with an
online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867). The zigzag order balances causal work: of 2 P pieces of
the sequence, device d computes the d-th from the front and the d-th from the back, and skips blocks that are wholly
masked, about half on each device. A length that P divides, but not 2 P, stays in order.
The backward pass sends keys and values round once more, so that no device holds those of another for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from easydel.ops.scores import MASKED, Scores, masked_scores, weighted_sum
from easydel.sharding.axes import AxisName, names_in
from easydel.sharding.placement import fit

# P devices, M pieces on each (1, or 2 in zigzag order), B batch, N heads, K kv heads, G query heads per kv head,
# T queries and S keys of a piece, C head channels, V value channels
BLOCK = 256  # queries whose scores exist at a time


@dataclass(frozen=True)
class Ring:
    """The mesh axes that activations are split over; `sequence` is the one that keys and values go round."""

    mesh: Mesh
    batch: AxisName
    sequence: AxisName
    heads: AxisName
    kv_heads: AxisName

    @property
    def devices(self) -> int:
        return self.mesh.axis_sizes[self.mesh.axis_names.index(self.sequence)] if isinstance(self.sequence, str) else 1

    def spec(self, batch: int, length: int, heads: int, kv_heads: int) -> PartitionSpec | None:
        """Returns how queries [B, T, N, C] are split; None if their sizes do not allow a ring."""
        axes = (self.batch, self.sequence, self.heads)
        spec = fit((batch, length, heads), axes, self.mesh)
        kv_spec = fit((batch, length, kv_heads), (self.batch, self.sequence, self.kv_heads), self.mesh)
        split = names_in(spec[1]) == names_in(self.sequence)
        return PartitionSpec(*spec, None) if self.devices > 1 and split and spec == kv_spec else None


def attend_ring(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    scores: Scores,
    ring: Ring,
    *,
    valid_BS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    starts_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns `attend` of a whole sequence, without bias. Sizes must be such that `ring.spec` is not None."""
    spec = ring.spec(q_BTNC.shape[0], q_BTNC.shape[1], q_BTNC.shape[2], k_BKSC.shape[1])
    assert spec is not None
    batch, sequence, heads, _ = spec
    keys = PartitionSpec(batch, heads, sequence, None)
    row_BS = None if valid_BS is None else jnp.where(valid_BS, 0.0, MASKED)
    tokens, own_heads = PartitionSpec(batch, sequence), PartitionSpec(heads)
    optional = ((row_BS, tokens), (sinks_N, own_heads), (starts_BT, tokens))
    specs = (spec, keys, keys, *(None if part is None else own for part, own in optional))
    local = partial(_attend_local, scores, str(ring.sequence), ring.devices)
    mapped = jax.shard_map(local, mesh=ring.mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return mapped(q_BTNC, k_BKSC, v_BKSV, row_BS, sinks_N, starts_BT)


def _attend_local(
    scores: Scores,
    axis: str,
    devices: int,
    q_BTNC: Any,
    k_BKSC: Any,
    v_BKSV: Any,
    row_BS: Any,
    sinks_N: Any,
    starts_BT: Any,
) -> jax.Array:
    B, T, N, C = q_BTNC.shape
    K = k_BKSC.shape[1]
    pieces = 2 if T % 2 == 0 else 1
    q_BKGTC = q_BTNC.reshape(B, T, K, N // K, C).transpose(0, 2, 3, 1, 4)
    row_BS = jnp.zeros((B, T)) if row_BS is None else row_BS
    sinks_KG = jnp.full((K, N // K), MASKED) if sinks_N is None else sinks_N.astype(jnp.float32).reshape(K, N // K)
    parts = [(q_BKGTC, 3), (k_BKSC, 2), (v_BKSV, 2), (row_BS, 1)]
    parts += [] if starts_BT is None else [(starts_BT, 1)]
    zigzag = [_dealt(jnp.stack(jnp.split(part, pieces, axis=dim)), axis, devices) for part, dim in parts]
    out_MBKGTV: Any = _ring(scores, axis, devices, *zigzag[:4], sinks_KG, tuple(zigzag[4:]))
    out_MBKGTV = _dealt(out_MBKGTV, axis, devices, back=True)
    out_BKGTV = jnp.concatenate(list(out_MBKGTV), axis=3)
    return out_BKGTV.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


def _dealt(pieces: Any, axis: str, devices: int, *, back: bool = False) -> jax.Array:
    """Exchanges two neighbouring pieces [2, ...] of each device for one from the front and one from the back."""
    if len(pieces) == 1:
        return pieces
    owner = [piece if piece < devices else 2 * devices - 1 - piece for piece in range(2 * devices)]
    routes = [[(device, owner[2 * device + parity]) for device in range(devices)] for parity in (0, 1)]
    # pieces alternate between the routes, so a device with an odd number gets its front piece by the second route
    odd = jax.lax.axis_index(axis) % 2 == 1
    if not back:
        even_piece, odd_piece = (jax.lax.ppermute(pieces[parity], axis, routes[parity]) for parity in (0, 1))
        return jnp.where(odd, jnp.stack([odd_piece, even_piece]), jnp.stack([even_piece, odd_piece]))
    routes = [[(there, here) for here, there in route] for route in routes]
    turned = jnp.where(odd, pieces[::-1], pieces)
    return jnp.stack([jax.lax.ppermute(turned[parity], axis, routes[parity]) for parity in (0, 1)])


def _starts(device: jax.Array, pieces: int, devices: int, length: int) -> list[jax.Array]:
    """Returns the slots where the pieces of `device` begin."""
    return [device * length] if pieces == 1 else [device * length, (2 * devices - 1 - device) * length]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ring(
    scores: Scores, axis: str, devices: int, q: Any, k: Any, v: Any, row: Any, sinks_KG: Any, starts: Any
) -> jax.Array:
    """Returns weighted values [M, B, K, G, T, V] of q [M, B, K, G, T, C], k, v [M, B, K, S, ...] and row [M, B, S].

    `starts` is empty, or has one array [M, B, S]: where the tokens' segments begin.
    """
    return _ring_forward(scores, axis, devices, q, k, v, row, sinks_KG, starts)[0]


def _ring_forward(
    scores: Scores, axis: str, devices: int, q: Any, k: Any, v: Any, row: Any, sinks_KG: Any, starts: Any
) -> tuple[jax.Array, Any]:
    # the online softmax starts from the sink: its weight is 1 before there is any key
    top = jnp.broadcast_to(sinks_KG[:, :, None, None], (*q.shape[:-1], 1))
    state = (top, (top > MASKED).astype(jnp.float32), jnp.zeros((*q.shape[:-1], v.shape[-1])))

    def visit(state: Any, nothing: Any, mine: int, theirs: int, distance: jax.Array, visitors: Any) -> Any:
        own = (q[mine], *(part[mine] for part in state), *_beside(q, starts, mine))
        new = _blockwise(partial(_absorb, scores), distance, own, tuple(part[theirs] for part in visitors))
        return tuple(part.at[mine].set(one) for part, one in zip(state, new, strict=True)), nothing

    state, _ = _rounds(scores, axis, devices, visit, state, (k, v, row, *starts), ())
    top, total, summed = state
    out = (summed / total).astype(q.dtype)
    return out, (q, k, v, row, sinks_KG, starts, out, top, total)


def _beside(q: jax.Array, starts: Any, mine: int) -> Any:
    """Returns the starts of the queries q[mine] [B, K, G, T, C], as [B, K, 1, T, 1]."""
    return [jnp.broadcast_to(part[mine][:, None, None, :, None], (*q.shape[1:3], 1, q.shape[4], 1)) for part in starts]


def _row(row_S: jax.Array, own_start: Any, starts_S: Any) -> jax.Array:
    """Returns the scores' bias that masks keys that are not valid, or of other segments: [S] or [1, T, S]."""
    return row_S if not starts_S else row_S + jnp.where(own_start[0] == starts_S[0], 0.0, MASKED)


def _absorb(scores: Scores, distance: Any, own: Any, visitors: Any) -> Any:
    """Updates the online softmax of one kv head's queries: top score, sum of weights, weighted values."""
    q_GTC, top, total, summed, *own_start = own
    k_SC, v_SV, row_S, *starts_S = visitors
    s_GTS = masked_scores(q_GTC, k_SC, None, _row(row_S, own_start, starts_S), distance, scores)
    new_top = jnp.maximum(top, jnp.max(s_GTS, axis=-1, keepdims=True))
    w_GTS, fade = jnp.exp(s_GTS - new_top), jnp.exp(top - new_top)
    total = total * fade + jnp.sum(w_GTS, axis=-1, keepdims=True)
    return new_top, total, summed * fade + weighted_sum(w_GTS, v_SV, scores)


def _ring_backward(scores: Scores, axis: str, devices: int, kept: Any, d_out: jax.Array) -> tuple[Any, ...]:
    q, k, v, row, sinks_KG, starts, out, top, total = kept  # top and total apart: beside MASKED a log would be lost
    d_out = d_out.astype(jnp.float32)
    delta = jnp.sum(d_out * out.astype(jnp.float32), axis=-1, keepdims=True)

    def visit(d_q: Any, gradients: Any, mine: int, theirs: int, distance: jax.Array, visitors: Any) -> Any:
        own = (*(part[mine] for part in (q, d_out, delta, top, total)), *_beside(q, starts, mine))
        seen = tuple(part[theirs] for part in visitors)
        one_q, one_k, one_v = _blockwise_gradients(scores, distance, own, seen)
        d_k, d_v = gradients
        return d_q.at[mine].add(one_q), (d_k.at[theirs].add(one_k), d_v.at[theirs].add(one_v))

    zeros = [jnp.zeros(part.shape, jnp.float32) for part in (q, k, v)]
    visitors = (k, v, row, *starts)
    d_q, (d_k, d_v) = _rounds(scores, axis, devices, visit, zeros[0], visitors, (zeros[1], zeros[2]))
    sink_weight = jnp.exp(sinks_KG[:, :, None, None] - top) / total
    d_sinks = -jnp.sum(sink_weight * delta, axis=(0, 1, 4, 5))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, d_sinks, None


_ring.defvjp(_ring_forward, _ring_backward)


def _rounds(
    scores: Scores, axis: str, devices: int, visit: Any, state: Any, visitors: Any, travelling: Any
) -> tuple[Any, Any]:
    """Passes keys and values (`visitors`) round the ring once.

    Calls `visit` for every pair of query and key pieces that can attend to each other. `travelling` goes along with
    the visitors and collects their gradients.
    """
    pieces, length, sight = len(visitors[0]), visitors[0].shape[3], scores.sight
    earliest = [jnp.min(part[:, :, 0], axis=1) for part in visitors[3:]]  # the first key that each own piece sees
    here = jax.lax.axis_index(axis)
    onwards = [(device, (device + 1) % devices) for device in range(devices)]

    def turn(count: jax.Array, carry: Any) -> Any:
        state, visitors, travelling = carry
        home = (here - count) % devices
        for mine, own_start in enumerate(_starts(here, pieces, devices, length)):
            for theirs, start in enumerate(_starts(home, pieces, devices, length)):
                distance = own_start - start
                seen = jnp.asarray(True) if sight.before is None else distance - (length - 1) <= sight.before
                seen = seen if sight.after is None else seen & (distance + (length - 1) >= -sight.after)
                seen = seen & (start + length > earliest[0][mine]) if earliest else seen
                pair = partial(visit, mine=mine, theirs=theirs, distance=distance, visitors=visitors)
                state, travelling = jax.lax.cond(seen, pair, lambda *both: both, state, travelling)
        visitors, travelling = jax.lax.ppermute((visitors, travelling), axis, onwards)
        return state, visitors, travelling

    state, _, travelling = jax.lax.fori_loop(0, devices, turn, (state, visitors, travelling))
    return state, travelling


def _blocks(T: int) -> int:
    """Returns the number of blocks, of at most BLOCK queries, to cut a piece into; 1 if only tiny blocks divide it."""
    count = next(count for count in range(-(-T // BLOCK), T + 1) if T % count == 0)
    return count if T // count >= 32 or T <= BLOCK else 1


def _cut(own: Any, count: int) -> Any:
    """Cuts each [B, K, G, T, X] into [count, B, K, G, T / count, X]."""
    return jax.tree.map(lambda part: jnp.stack(jnp.split(part, count, axis=3)), own)


def _joined(parts: Any) -> Any:
    return jax.tree.map(lambda part: jnp.concatenate(list(part), axis=3), parts)


def _each_head(function: Any) -> Any:
    """Maps `function` over batch and kv heads; all heads share what is valid and where segments begin."""

    def heads(own: Any, visitors: Any) -> Any:
        return jax.vmap(function, in_axes=(0, (0, 0, *[None] * (len(visitors) - 2))))(own, visitors)

    return jax.vmap(heads)


def _blockwise(absorb: Any, distance: jax.Array, own: Any, visitors: Any) -> Any:
    count = _blocks(own[0].shape[3])
    size = own[0].shape[3] // count

    def block(operands: Any) -> Any:
        index, own = operands
        return _each_head(partial(absorb, distance + index * size))(own, visitors)

    return _joined(jax.lax.map(block, (jnp.arange(count), _cut(own, count))))


def _blockwise_gradients(scores: Scores, distance: jax.Array, own: Any, visitors: Any) -> tuple[Any, Any, Any]:
    """Returns one query piece's and one key piece's share of the gradients of q, k and v, in float32."""
    count = _blocks(own[0].shape[3])
    size = own[0].shape[3] // count

    def block(carry: Any, operands: Any) -> tuple[Any, Any]:
        index, own = operands

        def surrogate(q: Any, k: Any, v: Any) -> jax.Array:
            """Returns a value with attention's derivative: weight * (d_out . value - d_out . out) by each score."""
            head = partial(_surrogate, scores, distance + index * size)
            return jnp.sum(_each_head(head)((q, *own[1:]), (k, v, *visitors[2:])))

        d_q, d_k, d_v = (d.astype(jnp.float32) for d in jax.grad(surrogate, (0, 1, 2))(own[0], *visitors[:2]))
        return (carry[0] + d_k, carry[1] + d_v), d_q

    zeros = tuple(jnp.zeros(part.shape, jnp.float32) for part in visitors[:2])
    (d_k, d_v), d_q = jax.lax.scan(block, zeros, (jnp.arange(count), _cut(own, count)))
    return _joined(d_q), d_k, d_v


def _surrogate(scores: Scores, distance: Any, own: Any, visitors: Any) -> jax.Array:
    q_GTC, d_out, delta, top, total, *own_start = own
    k_SC, v_SV, row_S, *starts_S = visitors
    row = _row(row_S, own_start, starts_S)
    w_GTS = jnp.exp(masked_scores(q_GTC, k_SC, None, row, distance, scores) - top) / total
    return jnp.sum(weighted_sum(w_GTS, v_SV, scores) * d_out) - jnp.sum(w_GTS * delta)
