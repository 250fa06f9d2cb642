"""RecurrentGemma (Botev et al. 2024, arXiv:2404.07839): Griffin's gated recurrence, local attention in every third."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_dtypes import bfloat16

from easydel.families import gemma, llama as base
from easydel.families._parts import (
    GLU,
    Block,
    ConfigError,
    Decoder,
    Embed,
    Head,
    HFConfig,
    Names,
    Part,
    UnsupportedModelError,
    family,
)
from easydel.layers.activations import activation
from easydel.layers.context import Context
from easydel.layers.conv import CausalConv
from easydel.layers.linear import Linear, parameter
from easydel.layers.part import empty
from easydel.layers.recurrent import attended, kept, past
from easydel.ops.gated_scan import gated_scan
from easydel.policy import Policy

# B batch, T length, I channels, N blocks of a gate's matrix, W channels of a block
GATES = ("input_gate", "recurrent_gate")
OWN = ("recurrent_param", *(f"{gate}_{leaf}" for gate in GATES for leaf in ("weight", "bias")))
NAMES = Names(
    {
        "model.norm": "model.final_norm",
        "input_layernorm": "temporal_pre_norm",
        "post_attention_layernorm": "channel_pre_norm",
        "self_attn": "temporal_block",
        "mixer": "temporal_block",
        "mlp": "mlp_block",
        "in_proj_y": "linear_y",
        "in_proj_x": "linear_x",
        "out_proj": "linear_out",
        "conv1d": "conv_1d",
    }
    | {f"mixer.{name}": f"temporal_block.rg_lru.{name}" for name in OWN}
)


@dataclass(frozen=True)
class GatedRecurrence(Part):
    """A real-gated linear recurrent unit over `inner` channels, whose gates have matrices of `blocks` on the diagonal.

    Before it stands a convolution over `width` tokens, beside it a gate with `act`.
    """

    name: ClassVar[str] = "mixer"
    inner: int
    blocks: int
    width: int
    act: str

    def __post_init__(self):
        activation(self.act)
        if self.inner % self.blocks:
            raise ConfigError(f"{self.inner} channels cannot stand in {self.blocks} blocks")

    def carries(self, tokens: int) -> str:
        return "gated recurrences"

    def build(self, features: int, policy: Policy) -> GatedRecurrenceLayer:
        return GatedRecurrenceLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """Returns the last inputs of the convolution and the state, in float32 as it is computed."""
        conv = empty((batch, self.width - 1, self.inner), dtype, "batch", None, "mlp")
        return {"conv": conv, "state": empty((batch, self.inner), jnp.float32, "batch", "mlp")}


class GatedRecurrenceLayer(nnx.Module):
    def __init__(self, record: GatedRecurrence, features: int, policy: Policy):
        width = record.inner // record.blocks
        self.in_proj_y = Linear(features, record.inner, policy, bias=True)
        self.in_proj_x = Linear(features, record.inner, policy, bias=True)
        self.conv1d = CausalConv(record.inner, record.width, policy, bias=True)
        self.recurrent_param = parameter((record.inner,), policy)
        for gate in GATES:
            setattr(self, f"{gate}_weight", parameter((record.blocks, width, width), policy))
            setattr(self, f"{gate}_bias", parameter((record.blocks, width), policy))
        self.out_proj = Linear(record.inner, features, policy, bias=True)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        gate_BTI = activation(self.record.act)(self._shard(self.in_proj_y(x_BTD)))
        x_BTI = attended(self._shard(self.in_proj_x(x_BTD)), context)
        x_BTI, conv = self.conv1d(x_BTI, past(cache, "conv"))
        x_BTI = x_BTI.astype(jnp.float32)
        decay_BTI = -8.0 * self._gate("recurrent_gate", x_BTI)
        decay_BTI = decay_BTI * jax.nn.softplus(self.recurrent_param[...].astype(jnp.float32))
        first_BT1 = (context.positions_BT == 0)[..., None]
        kept_BTI = jnp.where(first_BT1, 1.0, bounded_sqrt(1 - jnp.exp(2 * decay_BTI)))
        made_BTI = attended(x_BTI * self._gate("input_gate", x_BTI) * kept_BTI, context)
        state_BI = past(cache, "state")
        state_BI = jnp.zeros(x_BTI[:, 0].shape, jnp.float32) if state_BI is None else state_BI
        y_BTI, state_BI = gated_scan(made_BTI, attended(decay_BTI, context), state_BI)
        y_BTD = self.out_proj(self._shard(y_BTI).astype(gate_BTI.dtype) * gate_BTI)
        return y_BTD, kept(cache, conv=conv, state=state_BI)

    def _gate(self, name: str, x_BTI: jax.Array) -> jax.Array:
        """In float32: decays are exponentials of it."""
        weight, bias = (getattr(self, f"{name}_{leaf}")[...].astype(jnp.float32) for leaf in ("weight", "bias"))
        x_BTNW = x_BTI.reshape(*x_BTI.shape[:2], self.record.blocks, -1)
        y_BTNW = jnp.einsum("BTNW,NWV->BTNV", x_BTNW, weight, precision=self.policy.precision) + bias
        return jax.nn.sigmoid(y_BTNW).reshape(x_BTI.shape)

    def _shard(self, x_BTI: jax.Array) -> jax.Array:
        """Split by channels, and not by tokens: the recurrence goes through all of them in order."""
        return self.policy.shard(x_BTI, self.policy.axes.batch_axis, None, self.policy.axes.mlp_axis)


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with a derivative of at most 1000: that of small numbers has no bound."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return bounded_sqrt(primals[0]), tangents[0] * jax.lax.rsqrt(jnp.maximum(4 * primals[0], 1e-6))


@family("recurrent_gemma", NAMES, inert={"w_init_variance_scale": "how training begins"})
def recurrent_gemma(c: HFConfig) -> Decoder:
    norm, choices = gemma.norm(c), {"biased": "qkvo" if c.attention_bias else "o", "window": c.attention_window_size}
    inner, act = c.get("lru_width") or c.hidden_size, c.hidden_activation
    recurrence = GatedRecurrence(inner, c.num_attention_heads, c.conv1d_width, act)
    parts = {"recurrent": recurrence, "attention": base.attention(c, **choices)}
    kinds = c.block_types
    if unknown := sorted(set(kinds) - parts.keys()):
        raise UnsupportedModelError(f"block_types has {', '.join(unknown)}, known are {', '.join(parts)}", file=c.file)
    ffn = GLU(c.intermediate_size // 2, act, bias=True)
    made = {kind: Block(part, ffn, attn_in=norm, ffn_in=norm) for kind, part in parts.items()}
    blocks = [made[kinds[i % len(kinds)]] for i in range(c.num_hidden_layers)]
    embed = Embed(scale=float(bfloat16(c.hidden_size**0.5)))  # in 16 bits whatever the model is in
    head = Head(c.tie_word_embeddings, softcap=c.logits_soft_cap)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=embed)
