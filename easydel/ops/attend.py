"""Attention over cached keys and values, one entry for every model.

Six kernels compute it: `chunked` everywhere, in prompts, decodes and training; `ring` where a sequence is split over
devices, and `split` for single queries to a cache that is; for whole sequences `splash` on TPUs, in a ring
`splash ring`, and cuDNN's fused attention on NVIDIA GPUs, where they apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from easydel.ops.chunked import Keys, attend_chunked
from easydel.ops.ring import Ring, attend_ring
from easydel.ops.ring_pieces import PlainPieces
from easydel.ops.scores import MASKED, Bias, Scores
from easydel.ops.sight import Around, Causal, Chunks, Prefix, Sight, is_causal
from easydel.ops.splash import attend_splash, split, takes
from easydel.ops.splash_pieces import SplashPieces
from easydel.ops.split_keys import attend_split, split_of
from easydel.ops.stacked import Stacked

__all__ = [
    "Around",
    "Bias",
    "Causal",
    "Chunks",
    "Kernel",
    "Prefix",
    "Scores",
    "Select",
    "Sight",
    "attend",
    "choose",
    "is_causal",
]

# B batch, T queries, S keys, N heads, K kv heads, C head channels, V value channels
Kernel = Literal["ring", "splash ring", "split", "splash", "cudnn", "chunked"]
# (first query, queries) -> [B, 1 or N, queries, S]: the mask of keys that a few queries see
Select = Callable[[jax.Array | int, int], jax.Array]
CUDNN_CHANNELS = 128  # the most that cuDNN's flash attention takes on every GPU since Ampere


def attend(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    scores: Scores,
    *,
    offset: jax.Array | int = 0,
    valid_BS: jax.Array | None = None,
    bias: Bias | None = None,
    select: Select | None = None,
    sinks_N: jax.Array | None = None,
    starts_BT: jax.Array | None = None,
    mesh: jax.sharding.Mesh | None = None,
    ring: Ring | None = None,
    stacks: tuple[Stacked, Stacked] | None = None,
) -> jax.Array:
    """Returns weighted values [B, T, N, V] in the queries' dtype.

    Query t is in key slot `offset` + t and sees the slots that `scores.sight` allows, where `valid_BS` is true. `bias`
    [B or 1, N or 1, T or 1, S] is added to the scaled scores; it may be a function of (first query, queries) that
    returns that slice of it. `select` masks the allowed keys further, a few queries at a time. `sinks_N` is one more
    logit per head that takes weight but adds no value. An `offset` that is no traced array saves computation: see
    `chunked`. `starts_BT` is the first slot that each query sees. For a whole sequence it is where the token's segment
    begins, and tokens see their own segment only; sights that are not causal accept it for whole sequences alone.
    `mesh` is the mesh that arrays may be split over, and `ring` tells how. `stacks` are keys and values among those of
    other layers, for who reads a part of them.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    whole = not isinstance(offset, jax.Array) and int(offset) == 0 and q_BTNC.shape[1] == k_BKSC.shape[2]
    assert starts_BT is None or whole or is_causal(scores.sight)
    bias = bias if select is None else _with_selection(bias, select)
    masks: Any = {"valid_BS": valid_BS, "sinks_N": sinks_N, "starts_BT": starts_BT}
    masked = any(part is not None for part in masks.values())
    several = mesh is not None and mesh.size > 1
    given: Any = {"whole": whole, "masked": masked, "bias": bias, "ring": ring, "several": several}
    kernel = choose(platform, q_BTNC, k_BKSC, v_BKSV, scores, **given)
    chip = (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).device_kind
    if kernel in ("ring", "splash ring"):
        assert ring is not None
        some = valid_BS is not None or starts_BT is not None
        pieces = PlainPieces(scores) if kernel == "ring" else SplashPieces(scores, masked=some, chip=chip)
        return attend_ring(q_BTNC, k_BKSC, v_BKSV, pieces, ring, **masks)
    if kernel == "split":
        assert ring is not None
        return attend_split(q_BTNC, k_BKSC, v_BKSV, scores, ring, offset, **masks)
    looped = platform == "cpu" and not several

    def chunked(q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array) -> jax.Array:
        keys = Keys(k_BKSC, v_BKSV, valid_BS, bias, starts_BT, segments=whole, stacks=stacks)
        return attend_chunked(q_BTNC, keys, scores, offset, sinks_N, looped=looped)

    if kernel == "chunked":
        return chunked(q_BTNC, k_BKSC, v_BKSV)

    def fused(q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array) -> jax.Array:
        if kernel == "cudnn":
            return attend_fused(q_BTNC, k_BKSC, v_BKSV, scores, "cudnn")
        return attend_splash(q_BTNC, k_BKSC, v_BKSV, scores, ring=ring if several else None, chip=chip, **masks)

    if several and kernel == "splash":  # the mesh's devices, and no others, run it
        return fused(q_BTNC, k_BKSC, v_BKSV)
    # a model may be on the CPU although there is an accelerator: the platform compiled for decides
    accelerated = {"tpu" if kernel == "splash" else "cuda": fused}
    return jax.lax.platform_dependent(q_BTNC, k_BKSC, v_BKSV, default=chunked, **accelerated)


def _with_selection(bias: Bias | None, select: Select) -> Bias:
    """Returns a bias that also masks the keys that `select` leaves out."""

    def both(start: jax.Array | int, queries: int) -> jax.Array:
        chosen = jnp.where(select(start, queries), 0.0, MASKED)
        if bias is None:
            return chosen
        own = bias(start, queries) if callable(bias) else bias
        if not callable(bias) and own.shape[2] > 1:
            own = jax.lax.dynamic_slice_in_dim(own, start, queries, 2)
        return chosen + own

    return both


def choose(
    platform: str,
    q_BTNC: Any,
    k_BKSC: Any,
    v_BKSV: Any,
    scores: Scores,
    *,
    whole: bool,
    masked: bool,
    bias: Bias | None,
    ring: Ring | None,
    several: bool,
) -> Kernel:
    """Returns the kernel that computes attention of arrays with these shapes and dtypes.

    `whole`: there are as many queries as keys, from the first one on. `masked`: some keys are not valid or not of a
    query's segment, or there are sinks. `several`: arrays may be split over several devices, as `ring` says.
    """
    B, T, N, C = q_BTNC.shape
    K = k_BKSC.shape[1]
    if whole and bias is None and ring is not None and ring.spec(B, T, N, K) is not None:
        by_splash = platform == "tpu" and takes(q_BTNC, k_BKSC, v_BKSV, scores, ring.piece(T))
        return "splash ring" if by_splash else "ring"
    if (
        T == 1
        and not whole
        and bias is None
        and ring is not None
        and split_of(ring, B, k_BKSC.shape[2], N, K) is not None
    ):
        return "split"
    if platform == "tpu" and whole and bias is None and takes(q_BTNC, k_BKSC, v_BKSV, scores):
        # the partitioner cannot split a kernel as it splits products: it runs on each device's own batch and heads
        alone = not several or (ring is not None and split(ring, B, N, K) is not None)
        return "splash" if alone else "chunked"
    narrow = q_BTNC.dtype in (jnp.bfloat16, jnp.float16) and q_BTNC.dtype == k_BKSC.dtype == v_BKSV.dtype
    sized = C % 8 == 0 and CUDNN_CHANNELS >= C and v_BKSV.shape[-1] == C and T > 1
    sight = scores.sight
    plain = scores.softcap is None and bias is None and not masked and (is_causal(sight) or sight == Around())
    return "cudnn" if platform in ("gpu", "cuda") and whole and narrow and sized and plain else "chunked"


def attend_fused(
    q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array, scores: Scores, implementation: Literal["cudnn", "xla"]
) -> jax.Array:
    """Returns attention of whole sequences without masks, by `jax.nn.dot_product_attention`."""
    return jax.nn.dot_product_attention(
        q_BTNC,
        k_BKSC.swapaxes(1, 2),
        v_BKSV.swapaxes(1, 2),
        scale=scores.scale,
        is_causal=is_causal(scores.sight),
        local_window_size=None if scores.sight.before is None else (scores.sight.before, 0),
        implementation=implementation,
    )
