"""Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434): keys and values come from one small latent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from easydel.layers.activations import activation
from easydel.layers.attention import Gate
from easydel.layers.context import Context
from easydel.layers.linear import Linear, exact
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Cached, Handed, HeadSizes, Part, empty, handing, received
from easydel.layers.rope import Rope
from easydel.ops.attend import Causal, Scores, Select, attend
from easydel.ops.stacked import Stacked
from easydel.policy import ATTENTION_OUTPUT, Policy

# B batch, T query length, S key slots, D model, N heads, C unrotated head channels, P rotated ones, V value channels,
# R latent channels, L latent and rotated key side by side (R + P)
LatentCache = dict[str, Cached]
LATENT_AXES = ("batch", None, None, None)


@dataclass(frozen=True)
class MLA(Part):
    """Attention whose cache is a latent of `kv_rank` channels and one rotated key for all heads.

    Each head's query and key have `plain_dim` channels without position, and `rotated_dim` more that `position` rotates
    (its `dim`; without a `position`, `unrotated_dim`). With `q_rank` queries come from a latent too. `norm` acts on the
    latents; `bias` belongs to the projections to them and to the output. `scale` defaults to head_dim ** -0.5. `select`
    is a part that chooses keys for each query, as in `Attention`. `latent_scale` multiplies the normed latent of keys
    and values. The `gate` on the output reads the layer's input; if queries are made of `both`, of their latent after
    its norm and before it, side by side, then so is the gate. `sinks` are as in `Weights`.
    `key_norm` acts on the rotated key, before its rotation. With a `window` a query sees that many tokens, its own
    included; the cache keeps all.
    """

    name: ClassVar[str] = "self_attn"
    heads: int
    plain_dim: int
    value_dim: int
    kv_rank: int
    position: Rope | None
    norm: RMSNorm
    q_rank: int | None = None
    bias: bool = False
    scale: float | None = None
    select: Part | None = None
    unrotated_dim: int = 0
    latent_scale: float = 1.0
    gate: Gate | None = None
    both: bool = False
    sinks: bool = False
    key_norm: RMSNorm | None = None
    window: int | None = None

    @property
    def rotated_dim(self) -> int:
        """Channels of the one key that all heads share."""
        return self.unrotated_dim if self.position is None else self.position.dim

    @property
    def head_dim(self) -> int:
        return self.plain_dim + self.rotated_dim

    def build(self, features: int, policy: Policy) -> MLALayer:
        return MLALayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        """Returns empty latents and rotated keys side by side, [batch, 1, length, kv_rank + rotated_dim]."""
        shape = (batch, 1, length, self.kv_rank + self.rotated_dim)
        own = {"latent": empty(shape, dtype, *LATENT_AXES)}
        return own if self.select is None else own | {"select": self.select.cache(batch, length, dtype)}

    def ropes(self) -> Iterable[Rope]:
        if self.position is not None:
            yield self.position
        if self.select is not None:
            yield from self.select.ropes()

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (HeadSizes(self.heads, self.heads, self.head_dim, self.window),)

    def hands_on(self) -> Iterable[str]:
        return () if self.select is None else self.select.hands_on()

    def reads(self) -> Iterable[str]:
        return () if self.select is None else self.select.reads()

    def rewinds(self, length: int, end: int) -> int | None:
        return None

    def absorbs(self, queries: int, slots: int) -> bool:
        """True if attending to the latents themselves takes fewer products than computing keys and values first."""
        made = self.kv_rank * (self.plain_dim + self.value_dim)
        absorbed = queries * (slots * 2 * (self.kv_rank + self.rotated_dim) + made)
        return absorbed < slots * (queries * (self.head_dim + self.value_dim) + made)


class MLALayer(nnx.Module):
    def __init__(self, record: MLA, features: int, policy: Policy):
        wide, rank = record.heads * record.head_dim, record.q_rank
        if rank is None:
            self.q_proj = Linear(features, wide, policy)
        else:
            self.q_a_proj = Linear(features, rank, policy, bias=record.bias)
            self.q_a_layernorm = record.norm.build(rank, policy)
            self.q_b_proj = Linear(rank * (2 if record.both else 1), wide, policy)
        self.kv_a_proj_with_mqa = Linear(features, record.kv_rank + record.rotated_dim, policy, bias=record.bias)
        self.kv_a_layernorm = record.norm.build(record.kv_rank, policy)
        self.k_norm = None if record.key_norm is None else record.key_norm.build(record.rotated_dim, policy)
        self.kv_b_proj = Linear(record.kv_rank, record.heads * (record.plain_dim + record.value_dim), policy)
        self.o_proj = Linear(record.heads * record.value_dim, features, policy, bias=record.bias)
        if record.gate is not None:
            gates = record.heads * (1 if record.gate.per_head else record.value_dim)
            read = 2 * rank if record.both and rank is not None else features
            self.gate_proj = Linear(read, gates, policy, bias=record.gate.bias)
        self.sinks = exact((record.heads,), policy) if record.sinks else None
        if record.select is not None:
            setattr(self, record.select.name, record.select.build(features, policy))
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array | Handed, Any]:
        record = self.record
        q_latent_BTR, read_BTE, q_BTNC = self._queries(x_BTD)
        q_BTNC, q_BTNP = jnp.split(q_BTNC, [record.plain_dim], axis=-1)
        latent_BTR, k_BTP = jnp.split(self.kv_a_proj_with_mqa(x_BTD), [record.kv_rank], axis=-1)
        k_BTP = k_BTP if self.k_norm is None else self.k_norm(k_BTP)
        if record.position is not None:
            angles = context.angles(record.position)
            q_BTNP = record.position.rotate(q_BTNP, angles)
            k_BTP = record.position.rotate(k_BTP[:, :, None], angles)[:, :, 0]
        latent_BTR = self.kv_a_layernorm(latent_BTR)
        if record.latent_scale != 1.0:
            latent_BTR = latent_BTR * jnp.asarray(record.latent_scale, latent_BTR.dtype)
        latent_B1SL = jnp.concatenate([latent_BTR, k_BTP], axis=-1)[:, None]
        select: Select | None = None
        values: dict[str, Any] = {}
        if record.select is not None:
            kept = None if cache is None else cache["select"]
            # an indexer reads the layer's input and the queries' latent
            found, kept = getattr(self, record.select.name)((x_BTD, q_latent_BTR), context, kept)
            cache = None if cache is None else cache | {"select": kept}
            select, values = received(found)
        latents = Cached(latent_B1SL, LATENT_AXES)
        if cache is not None:
            latents = cache["latent"].written(latent_B1SL, context.offset, 2)
            cache = cache | {"latent": latents}
        absorbs = record.absorbs(x_BTD.shape[1], latents.array.shape[2])
        out_BTNV = (self._absorbed if absorbs else self._expanded)(q_BTNC, q_BTNP, latents, context, select)
        out_BTNV = checkpoint_name(self.policy.shard_heads(out_BTNV), ATTENTION_OUTPUT)
        if record.gate is not None:
            gates_BTE = activation(record.gate.act)(self.gate_proj(read_BTE if record.both else x_BTD))
            out_BTNV = out_BTNV * gates_BTE.reshape(*out_BTNV.shape[:3], -1)
        y_BTD = self.o_proj(out_BTNV.reshape(*x_BTD.shape[:2], -1))
        return handing(y_BTD, values), cache

    def _queries(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the queries' latent (without one, the input itself), what queries are made of, and the queries."""
        record = self.record
        if record.q_rank is None:
            latent_BTR, read_BTE, q = x_BTD, x_BTD, self.q_proj(x_BTD)
        else:
            raw_BTR = self.q_a_proj(x_BTD)
            latent_BTR = self.q_a_layernorm(raw_BTR)
            read_BTE = jnp.concatenate([latent_BTR, raw_BTR], axis=-1) if record.both else latent_BTR
            q = self.q_b_proj(read_BTE)
        heads = (record.heads, record.head_dim)
        return latent_BTR, read_BTE, self.policy.shard_heads(q.reshape(*q.shape[:2], *heads))

    def _expanded(
        self, q_BTNC: jax.Array, q_BTNP: jax.Array, latents: Cached, context: Context, select: Select | None
    ) -> jax.Array:
        """Attends with every head's keys and values, computed from the latents."""
        record = self.record
        latent_BSR, k_BSP = jnp.split(latents.array[:, 0], [record.kv_rank], axis=-1)
        made = self.kv_b_proj(latent_BSR).reshape(*latent_BSR.shape[:2], record.heads, -1)
        k_BSNC, v_BSNV = jnp.split(self.policy.shard_heads(made), [record.plain_dim], axis=-1)
        k_BSNP = jnp.broadcast_to(k_BSP[:, :, None], (*k_BSNC.shape[:3], k_BSP.shape[-1]))
        k_BNSC = jnp.concatenate([k_BSNC, k_BSNP], axis=-1).swapaxes(1, 2)
        q_BTNC = jnp.concatenate([q_BTNC, q_BTNP], axis=-1)
        return self._attend(q_BTNC, k_BNSC, v_BSNV.swapaxes(1, 2), context, select)

    def _absorbed(
        self, q_BTNC: jax.Array, q_BTNP: jax.Array, latents: Cached, context: Context, select: Select | None
    ) -> jax.Array:
        """Attends to the latents: the kernel of keys is applied to queries, the kernel of values to the output."""
        record, precision, weight = self.record, self.policy.precision, self.kv_b_proj.effective()
        floats = weight.astype if isinstance(weight, jax.Array) else weight.whole
        kernel = floats(q_BTNC.dtype).reshape(record.heads, -1, record.kv_rank)
        key_NCR, value_NVR = jnp.split(kernel, [record.plain_dim], axis=1)
        q_BTNR = jnp.einsum("BTNC,NCR->BTNR", q_BTNC, key_NCR, precision=precision)
        q_BTNL = jnp.concatenate([q_BTNR, q_BTNP], axis=-1)
        # the rotated keys are passed as values too and dropped after: cheaper than a copy of the cache without them
        keys, stacks = latents.array, None if latents.stack is None else (latents.stack, latents.stack)
        out_BTNR = self._attend(q_BTNL, keys, keys, context, select, stacks)[..., : record.kv_rank]
        return jnp.einsum("BTNR,NVR->BTNV", out_BTNR, value_NVR, precision=precision)

    def _attend(
        self,
        q_BTNC: jax.Array,
        k_BKSC: jax.Array,
        v_BKSV: jax.Array,
        context: Context,
        select: Select | None,
        stacks: tuple[Stacked, Stacked] | None = None,
    ) -> jax.Array:
        scale = self.record.head_dim**-0.5 if self.record.scale is None else self.record.scale
        scores = Scores(scale, sight=Causal(self.record.window), precision=self.policy.precision)
        masks: Any = {"offset": context.offset, "valid_BS": context.valid_BS, "starts_BT": context.starts_BT}
        masks |= {"sinks_N": None if self.sinks is None else self.sinks[...]}
        masks |= {"select": select, "stacks": stacks}
        return attend(q_BTNC, k_BKSC, v_BKSV, scores, mesh=self.policy.mesh, ring=self.policy.ring, **masks)
