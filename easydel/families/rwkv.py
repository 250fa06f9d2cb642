"""RWKV-4 (Peng et al. 2023, arXiv:2305.13048): averages that decay by channel, in place of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families._parts import Block, Decoder, Embed, HFConfig, LayerNorm, Names, Part, family
from easydel.layers.context import Context
from easydel.layers.linear import Linear, parameter
from easydel.layers.part import empty
from easydel.layers.recurrent import attended, kept, past
from easydel.ops.wkv import NOTHING, Sums, weighted_average
from easydel.policy import Policy

# B batch, T length, D model, I channels
RENAMES = {
    r"model\.embed_tokens": "rwkv.embeddings",
    r"model\.embed_layernorm": "rwkv.blocks.0.pre_ln",
    r"model\.layers": "rwkv.blocks",
    r"model\.norm": "rwkv.ln_out",
    "lm_head": "head",
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln2",
    "mixer": "attention",
    "mlp": "feed_forward",
    "in_proj_k|up_proj": "key",
    "in_proj_v|down_proj": "value",
    "in_proj_r|r_proj": "receptance",
    "out_proj": "output",
}
MEMORY = ("values", "weights", "exponent")


@dataclass(frozen=True)
class TimeMix(Part):
    """Averages over time of `inner` channels, gated. A token is mixed with the one before it, of `features`."""

    name: ClassVar[str] = "mixer"
    features: int
    inner: int

    def carries(self, tokens: int) -> str:
        return "RWKV"

    def build(self, features: int, policy: Policy) -> TimeMixLayer:
        return TimeMixLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """Returns the last token, and the sums in float32 as they are computed."""
        sums = {name: empty((batch, self.inner), jnp.float32, "batch", "mlp") for name in MEMORY}
        return sums | {"last": empty((batch, self.features), dtype, "batch", None)}


class TimeMixLayer(nnx.Module):
    def __init__(self, record: TimeMix, features: int, policy: Policy):
        self.time_decay = parameter((record.inner,), policy)
        self.time_first = parameter((record.inner,), policy)
        for name in ("key", "value", "receptance"):
            setattr(self, f"time_mix_{name}", parameter((1, 1, features), policy))
            setattr(self, f"in_proj_{name[0]}", Linear(features, record.inner, policy))
        self.out_proj = Linear(record.inner, features, policy)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        x_BTD = attended(x_BTD, context)
        mixed = with_previous(self, ("key", "value", "receptance"), x_BTD, past(cache, "last"))
        k_BTI, v_BTI, r_BTI = (self._projected(name, part_BTD) for name, part_BTD in zip("kvr", mixed, strict=True))
        k_BTI, v_BTI = k_BTI.astype(jnp.float32), v_BTI.astype(jnp.float32)
        if context.valid_BT is not None:
            k_BTI = jnp.where(context.valid_BT[..., None], k_BTI, NOTHING)
        decay_I = -jnp.exp(self.time_decay[...].astype(jnp.float32))
        decay_BTI = attended(jnp.broadcast_to(decay_I, k_BTI.shape), context)
        first_I = self.time_first[...].astype(jnp.float32)
        y_BTI, sums = weighted_average(k_BTI, v_BTI, decay_BTI, first_I, self._sums(k_BTI, cache))
        y_BTI = self._shard(y_BTI).astype(r_BTI.dtype) * jax.nn.sigmoid(r_BTI)
        return self.out_proj(y_BTI), kept(cache, last=x_BTD[:, -1], **dict(zip(MEMORY, sums, strict=True)))

    def _sums(self, k_BTI: jax.Array, cache: Any) -> Sums:
        """Of an empty cache, which is zero all over, the exponent is that of no token."""
        if cache is None:
            zeros_BI = jnp.zeros_like(k_BTI[:, 0])
            return zeros_BI, zeros_BI, jnp.full_like(zeros_BI, NOTHING)
        values, weights, exponent = (cache[name].array for name in MEMORY)
        return values, weights, jnp.where(weights == 0, NOTHING, exponent)

    def _projected(self, name: str, x_BTD: jax.Array) -> jax.Array:
        return self._shard(getattr(self, f"in_proj_{name}")(x_BTD))

    def _shard(self, x_BTI: jax.Array) -> jax.Array:
        """Split by channels, and not by tokens: the recurrence goes through all of them in order."""
        return self.policy.shard(x_BTI, self.policy.axes.batch_axis, None, self.policy.axes.mlp_axis)


@dataclass(frozen=True)
class ChannelMix(Part):
    """Squared ReLUs of `hidden` channels, gated. A token is mixed with the one before it, of `features`."""

    features: int
    hidden: int

    def build(self, features: int, policy: Policy) -> ChannelMixLayer:
        return ChannelMixLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        return {"last": empty((batch, self.features), dtype, "batch", None)}


class ChannelMixLayer(nnx.Module):
    def __init__(self, record: ChannelMix, features: int, policy: Policy):
        for name in ("key", "receptance"):
            setattr(self, f"time_mix_{name}", parameter((1, 1, features), policy))
        self.up_proj = Linear(features, record.hidden, policy)
        self.down_proj = Linear(record.hidden, features, policy)
        self.r_proj = Linear(features, features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        x_BTD = attended(x_BTD, context)
        k_BTD, r_BTD = with_previous(self, ("key", "receptance"), x_BTD, past(cache, "last"))
        y_BTD = self.down_proj(jnp.square(jax.nn.relu(self.up_proj(k_BTD))))
        return y_BTD * jax.nn.sigmoid(self.r_proj(r_BTD)), kept(cache, last=x_BTD[:, -1])


def with_previous(layer: Any, names: Sequence[str], x_BTD: jax.Array, last_BD: jax.Array | None) -> list[jax.Array]:
    """Returns mixtures of each token and the one before it: for each name, in the shares of `layer.time_mix_NAME`."""
    last_BD = jnp.zeros_like(x_BTD[:, 0]) if last_BD is None else last_BD.astype(x_BTD.dtype)
    previous_BTD = jnp.concatenate([last_BD[:, None], x_BTD[:, :-1]], axis=1)
    shares = (getattr(layer, f"time_mix_{name}")[...].astype(x_BTD.dtype) for name in names)
    return [x_BTD * share + previous_BTD * (1 - share) for share in shares]


@family("rwkv", Names(RENAMES, exact=("time_decay", "time_first"), prefix="rwkv"))
def rwkv(c: HFConfig) -> Decoder:
    features, layers, every = c.hidden_size, c.num_hidden_layers, c.rescale_every

    def norm(layer: int, eps: float = c.layer_norm_epsilon) -> LayerNorm:
        """transformers halves hidden states after `every` layers, which changes nothing but what eps is added to."""
        return LayerNorm(eps * 4.0 ** (layer // every if every > 0 else 0))

    mixer = TimeMix(features, c.get("attention_hidden_size") or features)
    ffn = ChannelMix(features, c.get("intermediate_size") or 4 * features)
    blocks = [Block(mixer, ffn, attn_in=norm(i), ffn_in=norm(i)) for i in range(layers)]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm(layers, 1e-5), embed=Embed(norm=norm(0)))
