"""GPT-OSS (OpenAI 2025, arXiv:2508.10925): attention sinks, every other layer windowed, experts with clamped SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from easydel.families import llama as base
from easydel.families._layers import FULL, SLIDING, layer_types, windows
from easydel.families._parts import GLU, Decoder, Fused, HFConfig, MoE, TopK, family, interleaved
from easydel.layers.mlp import saved

NAMES = base.NAMES.extended(
    {
        "mlp.gate": "mlp.router",
        r"experts\.(gate_up_proj|down_proj)\.weight": r"experts.\1",
        r"experts\.(gate_up_proj|down_proj)\.bias": r"experts.\1_bias",
    },
    fused=(Fused("experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj"), interleaved),),
    transposed=("experts.gate_up_proj", "experts.down_proj"),
    stacked_experts=True,
    exact=(r"\w*norm",),
)


@dataclass(frozen=True)
class ClampedGLU(GLU):
    """A GLU, `gate * sigmoid(alpha * gate) * (up + 1)`, with limits: on `gate` from above, on `up` on both sides."""

    alpha: float = 1.702
    limit: float = 7.0

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = saved(gate), saved(up)
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)


@family("gpt_oss", NAMES, inert={"hidden_act": "the activation is always SwiGLU"})
def gpt_oss(c: HFConfig) -> Decoder:
    kinds = layer_types(c, [FULL if layer % 2 else SLIDING for layer in range(c.num_hidden_layers)])
    choices = {"sinks": True, "biased": c.attention_bias}
    mixers = [base.attention(c, window=window, **choices) for window in windows(c, kinds)]
    expert = ClampedGLU(c.intermediate_size, "silu", bias=True, alpha=c.swiglu_alpha, limit=c.swiglu_limit)
    router = TopK(c.num_experts_per_tok, renormalize=True, bias=True)  # the same as a softmax over the chosen ones
    return base.pre_norm(c, mixers, [MoE(c.num_local_experts, expert, router)] * len(mixers))
