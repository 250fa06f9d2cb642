"""Attention of whole sequences on TPUs by "splash", the Pallas kernel that comes with JAX.

Blocks of scores never leave the chip's own memory, and blocks that order or window mask are skipped, in the backward
pass too. Keys that are not valid form a segment that no query belongs to. Importing the kernel takes half as long as
`import easydel` may take in all, so only the functions that need it import it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from easydel.ops.ring import Ring
from easydel.ops.scores import Scores
from easydel.sharding.placement import fit

# B batch, T queries and keys, N heads, K kv heads, C head channels, V value channels
LANES = 128  # the least keys in a block, as wide as a TPU's vector registers
SHORTEST = 256  # shorter sequences are one chunk elsewhere: there is nothing to skip
BLOCKS = (512, 256, LANES)  # queries and keys
# Chips, by the name that JAX gives them, whose own memory has room for larger blocks, and the most bfloat16 channels of
# these: in the backward pass too, with masks and sinks.
LARGER, ROOMY = 1024, {"TPU v5 lite": 128, "TPU v6 lite": 256}
CHANNELS = 256  # the most that JAX's own tests of the kernel use
NARROWEST = 64  # channels, which fill half of a register; narrower heads would be zeros for the most part
NOWHERE = -1  # the segment of keys that are not valid


def takes(q_BTNC: Any, k_BKSC: Any, v_BKSV: Any, scores: Scores, length: int | None = None) -> bool:
    """True if the kernel can compute attention of whole sequences, or of pieces of `length`, of these arrays."""
    T, C, V = length or q_BTNC.shape[1], q_BTNC.shape[3], v_BKSV.shape[3]
    sized = T % LANES == 0 and T >= SHORTEST and all(NARROWEST <= c <= CHANNELS for c in (C, V))
    # the kernel multiplies in the hardware's own precision, which for bfloat16 is all there is
    precise = q_BTNC.dtype == jnp.float32 and scores.precision in (None, jax.lax.Precision.DEFAULT)
    typed = q_BTNC.dtype == k_BKSC.dtype == v_BKSV.dtype and (precise or q_BTNC.dtype == jnp.bfloat16)
    return sized and typed


def split(ring: Ring, batch: int, heads: int, kv_heads: int) -> tuple[Any, Any] | None:
    """Returns the mesh axes of batch and heads; None if a device would have queries without their kv heads."""
    spec = fit((batch, heads), (ring.batch, ring.heads), ring.mesh)
    kv_spec = fit((batch, kv_heads), (ring.batch, ring.kv_heads), ring.mesh)
    return (spec[0], spec[1]) if spec == kv_spec else None


def attend_splash(
    q_BTNC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSV: jax.Array,
    scores: Scores,
    *,
    valid_BS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    starts_BT: jax.Array | None = None,
    ring: Ring | None = None,
    chip: str = "",
    interpret: bool = False,
) -> jax.Array:
    """Returns `attend` of whole sequences without bias, for arguments that `takes` accepts.

    `ring` says how arrays are split over several devices, if they are: `split` must not be None. `chip` is the kind of
    device that this is compiled for. With `interpret` the kernel runs on any device, slowly.
    """
    ids = None if valid_BS is None and starts_BT is None else _ids(valid_BS, starts_BT)
    local = partial(_attend_local, scores, chip, interpret)
    if ring is None or ring.mesh.size == 1:
        return local(q_BTNC, k_BKSC, v_BKSV, ids, sinks_N)
    axes = split(ring, q_BTNC.shape[0], q_BTNC.shape[2], k_BKSC.shape[1])
    assert axes is not None
    queries, keys = PartitionSpec(axes[0], None, axes[1], None), PartitionSpec(*axes, None, None)
    row = None if ids is None else (PartitionSpec(axes[0], None),) * 2
    specs = (queries, keys, keys, row, None if sinks_N is None else PartitionSpec(axes[1]))
    mapped = jax.shard_map(local, mesh=ring.mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return mapped(q_BTNC, k_BKSC, v_BKSV, ids, sinks_N)


def _ids(valid_BS: jax.Array | None, starts_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the segments of queries and of keys, [B, T] each."""
    if valid_BS is None:
        assert starts_BT is not None
        return starts_BT, starts_BT
    own_BT = jnp.zeros(valid_BS.shape, jnp.int32) if starts_BT is None else starts_BT
    return own_BT, jnp.where(valid_BS, own_BT, NOWHERE)


def block_size(length: int, channels: int, dtype: Any, chip: str) -> int:
    """Returns the number of queries, and of keys, in a block."""
    larger = channels <= ROOMY.get(chip, 0) and dtype == jnp.bfloat16
    return next(block for block in (*((LARGER,) if larger else ()), *BLOCKS) if length % block == 0)


def _with_channels(x: jax.Array) -> jax.Array:
    """Returns heads of a width that the kernel takes, a multiple of 64, with zeros behind their channels."""
    width = x.shape[-1]
    more = 0 if width % NARROWEST == 0 else -width % LANES
    return x if more == 0 else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])


def prepared(scores: Scores, q_BTNC: jax.Array, k_BKSC: jax.Array, v_BKSV: jax.Array) -> tuple[jax.Array, ...]:
    """Returns queries, keys and values as the kernel wants them, values perhaps with more channels.

    The kernel has no scale: queries are scaled, and rounded once to their own dtype.
    """
    q_BTNC = (q_BTNC.astype(jnp.float32) * scores.scale).astype(q_BTNC.dtype)
    return _with_channels(q_BTNC), _with_channels(k_BKSC), _with_channels(v_BKSV)


def block_of(q: Any, v: Any, length: int, chip: str) -> int:
    """Returns `block_size` of queries [..., C] and values [..., V]."""
    return block_size(length, max(q.shape[-1], v.shape[-1]), q.dtype, chip)


def _attend_local(
    scores: Scores, chip: str, interpret: bool, q_BTNC: Any, k_BKSC: Any, v_BKSV: Any, ids: Any, sinks_N: Any
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    values = v_BKSV.shape[3]
    q_BTNC, k_BKSC, v_BKSV = prepared(scores, q_BTNC, k_BKSC, v_BKSV)
    T, N = q_BTNC.shape[1:3]
    kernel = kernel_of(N, T, block_of(q_BTNC, v_BKSV, T, chip), scores, interpret=interpret)
    q_BNTC = q_BTNC.swapaxes(1, 2)

    def row(q_NTC: Any, k_KSC: Any, v_KSV: Any, ids: Any) -> jax.Array:
        return kernel(q_NTC, k_KSC, v_KSV, None if ids is None else SegmentIds(*ids), sinks_N)

    return jax.vmap(row)(q_BNTC, k_BKSC, v_BKSV, ids)[..., :values].swapaxes(1, 2)


def kernel_of(
    heads: int,
    length: int,
    block: int,
    scores: Scores,
    *,
    distance: int = 0,
    with_sums: bool = False,
    interpret: bool,
) -> Any:
    """Returns a function of one row's q [N, T, C], k [K, S, C], v [K, S, V]; grouped heads read the same keys.

    Queries begin `distance` slots after the keys. `with_sums` adds the logarithm of each query's sum of weights to the
    result; then there is no gradient.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        FullMask,
        LocalMask,
        MultiHeadMask,
        make_splash_mha_single_device,
    )

    shape = (length, length)
    before, after = scores.sight.before, scores.sight.after
    if before is None and after is None:
        mask = FullMask(shape)
    elif before is None and after == 0:
        mask = CausalMask(shape, distance)
    else:
        mask = LocalMask(shape, (before, after), distance)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    return make_splash_mha_single_device(
        MultiHeadMask([mask] * heads),
        block_sizes=BlockSizes(**sizes),
        save_residuals=with_sums,
        attn_logits_soft_cap=scores.softcap,
        interpret=interpret,
    )
