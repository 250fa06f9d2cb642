"""GPT-OSS (OpenAI 2025, arXiv:2508.10925): attention sinks, every other layer windowed, experts with clamped SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.families.qwen2 import FULL, SLIDING, layer_types
from easydel.layers.mlp import GLU, saved
from easydel.layers.moe import MoE, TopK
from easydel.weights.names import Fused, interleaved

NAMES = base.NAMES.extended(
    {
        "mlp.gate": "mlp.router",
        r"experts\.(gate_up_proj|down_proj)\.weight": r"experts.\1",
        r"experts\.(gate_up_proj|down_proj)\.bias": r"experts.\1_bias",
    },
    fused=(Fused("experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj"), interleaved),),
    transposed=("experts.gate_up_proj", "experts.down_proj"),
    stacked_experts=True,
)
SIZES = {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36}
HEADS = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True}
EXPERTS = {"num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}
LENGTHS = {"max_position_embeddings": 131072, "sliding_window": 128, "rms_norm_eps": 1e-5, "rope_theta": 150000.0}
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
YARN |= {"original_max_position_embeddings": 4096}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | EXPERTS | LENGTHS
# what OpenAI's own code calls num_experts_per_tok and original_max_position_embeddings; the activation is always SwiGLU
INERT = ("experts_per_token", "initial_context_length", "hidden_act")


@dataclass(frozen=True)
class ClampedGLU(GLU):
    """A GLU of `gate * sigmoid(alpha * gate)` and `up + 1`, both limited: gates from above, ups on both sides."""

    alpha: float = 1.702
    limit: float = 7.0

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = saved(gate), saved(up)
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)


@family("gpt_oss", NAMES, defaults=DEFAULTS, aliases={"num_local_experts": "num_experts"}, inert=INERT)
def gpt_oss(c: HFConfig) -> Decoder:
    layers = range(c.num_hidden_layers)
    window = {SLIDING: c.sliding_window, FULL: None}
    kinds = layer_types(c, [FULL if layer % 2 else SLIDING for layer in layers])
    bias = {"bias": c.attention_bias, "out_bias": c.attention_bias}
    mixers = [base.attention(c, rope=c.rope(default=YARN), window=window[kind], sinks=True, **bias) for kind in kinds]
    expert = ClampedGLU(c.intermediate_size, "silu", bias=True, alpha=c.swiglu_alpha, limit=c.swiglu_limit)
    router = TopK(c.num_experts_per_tok, renormalize=True, bias=True)  # a softmax over the chosen ones alone
    return base.pre_norm(c, mixers, [MoE(c.num_local_experts, expert, router)] * len(layers))
