"""Attention between two pieces of a split sequence by "splash", JAX's Pallas kernel for TPUs: see `splash.py`.

A piece's output and the logarithm of its sum of weights are as good as one more key with that score and that value, so
the ring's online softmax goes on. Backward, the kernels get the sums over all pieces, and give each piece's share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.scores import MASKED, Scores
from easydel.ops.sight import Around, Sight
from easydel.ops.splash import NOWHERE, block_of, kernel_of, prepared

# B batch, K kv heads, G query heads per kv head, N heads, T queries and S keys of a piece, C head channels


@dataclass(frozen=True)
class SplashPieces:
    """The `Pieces` of a ring of TPUs, for arrays that `splash.takes` accepts.

    `masked` says whether some keys are not valid, or there are segments. `chip` and `interpret` are as in
    `attend_splash`.
    """

    scores: Scores
    masked: bool
    chip: str = ""
    interpret: bool = False

    def prepared(self, q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array) -> tuple[jax.Array, ...]:
        return prepared(self.scores, q_BTNC, k_BKSC, v_BKSV)

    def absorb(self, distance: jax.Array, own: Any, visitors: Any) -> Any:
        q, top, total, summed, *starts = own
        k, v, *rest = visitors
        ids = self._ids(starts, *rest)

        def forward(kernel: Any) -> tuple[jax.Array, jax.Array]:
            out_BNTV, (sums_BNT,) = jax.vmap(kernel)(_by_heads(q), k, v, ids)
            return out_BNTV, sums_BNT

        out_BNTV, sums_BNT = self._seen(distance, q, v, forward)
        out, sums = out_BNTV.reshape(summed.shape).astype(jnp.float32), sums_BNT.reshape(top.shape)
        seen = sums > MASKED  # of queries without a key in sight, the kernel's outputs may be NaN
        sums, out = jnp.where(seen, sums, MASKED), jnp.where(seen, out, 0)
        new_top = jnp.maximum(top, sums)
        weight, fade = jnp.exp(sums - new_top), jnp.exp(top - new_top)
        return new_top, total * fade + weight, summed * fade + weight * out

    def gradients(self, distance: jax.Array, own: Any, visitors: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import _splash_attention_bwd

        q, out, d_out, _, top, total, *starts = own
        k, v, *rest = visitors
        sums_BNT = _by_heads(top + jnp.log(total))[..., 0]
        ids = self._ids(starts, *rest)

        def backward(kernel: Any) -> tuple[jax.Array, ...]:
            def row(q: Any, k: Any, v: Any, ids: Any, out: Any, sums: Any, d_out: Any) -> tuple[jax.Array, ...]:
                kept = (q, k, v, ids, None, out, sums, kernel.dq_mask_info, kernel.dkv_mask_info)
                return _splash_attention_bwd(**kernel.kwargs, res=kept, do=d_out)[3:6]

            return jax.vmap(row)(_by_heads(q), k, v, ids, _by_heads(out), sums_BNT, _by_heads(d_out))

        d_q, d_k, d_v = (part.astype(jnp.float32) for part in self._seen(distance, q, v, backward))
        return d_q.reshape(q.shape), d_k, d_v

    def _ids(self, starts: Any, row_BS: jax.Array, *their_starts: jax.Array) -> Any:
        """Returns the segments of queries and of keys, by where they begin; those of keys that are not valid differ."""
        if not self.masked:
            return None
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        one = jnp.zeros(row_BS.shape, jnp.int32)
        own_BT, their_BS = (found[0] if found else one for found in (starts, their_starts))
        return SegmentIds(own_BT, jnp.where(row_BS < 0, NOWHERE, their_BS))

    def _seen(self, distance: jax.Array, q: Any, v: Any, compute: Callable[[Any], Any]) -> Any:
        """Returns what `compute` makes of the kernel for keys at this distance, some of which are seen."""
        _, K, G, T, _ = q.shape
        block = block_of(q, v, T, self.chip)

        def branch(sight: Sight, distance: int) -> Callable[[], Any]:
            scores = replace(self.scores, sight=sight)
            options: dict[str, Any] = {"with_sums": True, "interpret": self.interpret}
            return lambda: compute(kernel_of(K * G, T, block, scores, distance=distance, **options))

        cut, whole = distances(self.scores.sight, T)
        branches = [branch(self.scores.sight, one) for one in cut]
        branches += [branch(Around(), 0)] if whole else []
        if len(branches) == 1:
            return branches[0]()
        last = len(branches) - 1
        number = last + sum(jnp.where(distance == one, place - last, 0) for place, one in enumerate(cut))
        return jax.lax.switch(number, branches)


def distances(sight: Sight, length: int) -> tuple[list[int], bool]:
    """Returns at which distances queries see a part of a piece's keys, and whether at others they see all or none."""
    before, after = sight.before, sight.after
    least = 0 if after is None else -((after + length) // length) * length
    most = 0 if before is None else (before + length) // length * length
    cut, whole = [], before is None or after is None
    for distance in range(least, most + 1, length):
        nearest, farthest = distance - (length - 1), distance + (length - 1)
        all_seen = (before is None or farthest <= before) and (after is None or nearest >= -after)
        none_seen = (before is not None and nearest > before) or (after is not None and farthest < -after)
        cut += [] if all_seen or none_seen else [distance]
        whole = whole or all_seen
    return cut, whole


def _by_heads(part: jax.Array) -> jax.Array:
    """Returns [B, N, T, ...] of [B, K, G, T, ...]."""
    return part.reshape(part.shape[0], -1, *part.shape[3:])
