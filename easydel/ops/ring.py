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
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from easydel.ops.scores import MASKED, Scores
from easydel.ops.sight import Sight
from easydel.sharding.axes import AxisName, names_in
from easydel.sharding.placement import fit

# P devices, M pieces on each (1, or 2 in zigzag order), B batch, N heads, K kv heads, G query heads per kv head,
# T queries and S keys of a piece, C head channels, V value channels


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

    def piece(self, length: int) -> int:
        """Returns the length of the pieces that a sequence is cut into."""
        own = length // self.devices
        return own // _pieces(own)


class Pieces(Protocol):
    """A way to compute attention of a piece of queries to a piece of keys, which begins `distance` slots before them.

    `own` begins with queries [B, K, G, T, C], `visitors` are keys and values [B, K, S, ...] and 0 or MASKED for each
    key, [B, S]. Both end with where the tokens' segments begin, [B, T] and [B, S], if they have segments.
    """

    @property
    def scores(self) -> Scores: ...

    def prepared(self, q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array) -> tuple[jax.Array, ...]:
        """Returns queries, keys and values as the other methods want them; values may have more channels."""
        ...

    def absorb(self, distance: jax.Array, own: Any, visitors: Any) -> Any:
        """Returns the online softmax, updated: its top score, sum of weights and weighted values [B, K, G, T, ...].

        They follow the queries in `own`.
        """
        ...

    def gradients(self, distance: jax.Array, own: Any, visitors: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the share of the gradients of queries, keys and values, in float32.

        The queries in `own` are followed by the output and its gradient, their product summed over channels, top score
        and sum of weights.
        """
        ...


def attend_ring(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    pieces: Pieces,
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
    local = partial(_attend_local, pieces, str(ring.sequence), ring.devices)
    mapped = jax.shard_map(local, mesh=ring.mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return mapped(q_BTNC, k_BKSC, v_BKSV, row_BS, sinks_N, starts_BT)


def _attend_local(
    pieces: Pieces,
    axis: str,
    devices: int,
    q_BTNC: Any,
    k_BKSC: Any,
    v_BKSV: Any,
    row_BS: Any,
    sinks_N: Any,
    starts_BT: Any,
) -> jax.Array:
    values = v_BKSV.shape[3]
    q_BTNC, k_BKSC, v_BKSV = pieces.prepared(q_BTNC, k_BKSC, v_BKSV)
    B, T, N, C = q_BTNC.shape
    K, count = k_BKSC.shape[1], _pieces(T)
    q_BKGTC = q_BTNC.reshape(B, T, K, N // K, C).transpose(0, 2, 3, 1, 4)
    row_BS = jnp.zeros((B, T)) if row_BS is None else row_BS
    sinks_KG = jnp.full((K, N // K), MASKED) if sinks_N is None else sinks_N.astype(jnp.float32).reshape(K, N // K)
    parts = [(q_BKGTC, 3), (k_BKSC, 2), (v_BKSV, 2), (row_BS, 1)]
    parts += [] if starts_BT is None else [(starts_BT, 1)]
    zigzag = [_dealt(jnp.stack(jnp.split(part, count, axis=dim)), axis, devices) for part, dim in parts]
    out_MBKGTV: Any = _ring(pieces, axis, devices, *zigzag[:4], sinks_KG, tuple(zigzag[4:]))
    out_MBKGTV = _dealt(out_MBKGTV, axis, devices, back=True)
    out_BKGTV = jnp.concatenate(list(out_MBKGTV), axis=3)
    return out_BKGTV.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)[..., :values]


def _pieces(length: int) -> int:
    """Returns how many pieces a device has of a sequence of which it has `length` tokens."""
    return 2 if length % 2 == 0 else 1


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


def _starts(device: jax.Array, pieces: int, devices: int, length: int) -> jax.Array:
    """Returns the slots where the pieces of `device` begin."""
    return jnp.stack([device * length, (2 * devices - 1 - device) * length][:pieces])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ring(
    how: Pieces, axis: str, devices: int, q: Any, k: Any, v: Any, row: Any, sinks_KG: Any, starts: Any
) -> jax.Array:
    """Returns weighted values [M, B, K, G, T, V] of q [M, B, K, G, T, C], k, v [M, B, K, S, ...] and row [M, B, S].

    `starts` is empty, or has one array [M, B, S]: where the tokens' segments begin.
    """
    return _ring_forward(how, axis, devices, q, k, v, row, sinks_KG, starts)[0]


def _ring_forward(
    how: Pieces, axis: str, devices: int, q: Any, k: Any, v: Any, row: Any, sinks_KG: Any, starts: Any
) -> tuple[jax.Array, Any]:
    # the online softmax starts from the sink: its weight is 1 before there is any key
    top = jnp.broadcast_to(sinks_KG[:, :, None, None], (*q.shape[:-1], 1))
    state = (top, (top > MASKED).astype(jnp.float32), jnp.zeros((*q.shape[:-1], v.shape[-1])))

    def visit(state: Any, nothing: Any, mine: Any, theirs: Any, distance: jax.Array, visitors: Any) -> Any:
        own = tuple(part[mine] for part in (q, *state, *starts))
        new = how.absorb(distance, own, tuple(part[theirs] for part in visitors))
        return tuple(part.at[mine].set(one) for part, one in zip(state, new, strict=True)), nothing

    state, _ = _rounds(how.scores.sight, axis, devices, visit, state, (k, v, row, *starts), ())
    top, total, summed = state
    out = (summed / total).astype(q.dtype)
    return out, (q, k, v, row, sinks_KG, starts, out, top, total)


def _ring_backward(how: Pieces, axis: str, devices: int, kept: Any, d_out: jax.Array) -> tuple[Any, ...]:
    q, k, v, row, sinks_KG, starts, out, top, total = kept  # top and total apart: beside MASKED a log would be lost
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

    def visit(d_q: Any, gradients: Any, mine: Any, theirs: Any, distance: jax.Array, visitors: Any) -> Any:
        own = tuple(part[mine] for part in (q, out, d_out, delta, top, total, *starts))
        one_q, one_k, one_v = how.gradients(distance, own, tuple(part[theirs] for part in visitors))
        d_k, d_v = gradients
        return d_q.at[mine].add(one_q), (d_k.at[theirs].add(one_k), d_v.at[theirs].add(one_v))

    zeros = [jnp.zeros(part.shape, jnp.float32) for part in (q, k, v)]
    visitors = (k, v, row, *starts)
    d_q, (d_k, d_v) = _rounds(how.scores.sight, axis, devices, visit, zeros[0], visitors, (zeros[1], zeros[2]))
    sink_weight = jnp.exp(sinks_KG[:, :, None, None] - top) / total
    d_sinks = -jnp.sum(sink_weight * delta, axis=(0, 1, 4, 5))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, d_sinks, None


_ring.defvjp(_ring_forward, _ring_backward)


def _rounds(
    sight: Sight, axis: str, devices: int, visit: Any, state: Any, visitors: Any, travelling: Any
) -> tuple[Any, Any]:
    """Passes keys and values (`visitors`) round the ring once.

    Calls `visit` for every pair of query and key pieces that can attend to each other. `travelling` goes along with
    the visitors and collects their gradients.
    """
    pieces, length = len(visitors[0]), visitors[0].shape[3]
    earliest = [jnp.min(part[:, :, 0], axis=1) for part in visitors[3:]]  # the first key that each own piece sees
    here = jax.lax.axis_index(axis)
    onwards = [(device, (device + 1) % devices) for device in range(devices)]

    def turn(count: jax.Array, carry: Any) -> Any:
        state, visitors, travelling = carry
        own_starts, starts = (_starts(device, pieces, devices, length) for device in (here, (here - count) % devices))

        def pair(number: jax.Array, both: Any) -> Any:
            mine, theirs = number // pieces, number % pieces
            start, distance = starts[theirs], own_starts[mine] - starts[theirs]
            seen = jnp.asarray(True) if sight.before is None else distance - (length - 1) <= sight.before
            seen = seen if sight.after is None else seen & (distance + (length - 1) >= -sight.after)
            seen = seen & (start + length > earliest[0][mine]) if earliest else seen
            computed = partial(visit, mine=mine, theirs=theirs, distance=distance, visitors=visitors)
            return jax.lax.cond(seen, computed, lambda *both: both, *both)

        # a loop, so that there is one program for all pairs
        state, travelling = jax.lax.fori_loop(0, pieces**2, pair, (state, travelling))
        visitors, travelling = jax.lax.ppermute((visitors, travelling), axis, onwards)
        return state, visitors, travelling

    state, _, travelling = jax.lax.fori_loop(0, devices, turn, (state, visitors, travelling))
    return state, travelling
