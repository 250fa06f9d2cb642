"""Inkling (Thinking Machines Lab 2026, the model card of thinkingmachines/Inkling): biases that tokens mix instead of
positions, short convolutions after every part, and shared experts that take part in the softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from easydel.families import llama as base
from easydel.families._experts import CORRECTED, STACKED, by_type
from easydel.families._layers import layer_types
from easydel.families._parts import (
    GLU,
    Block,
    Causal,
    ConvAttention,
    Decoder,
    Embed,
    Fused,
    Head,
    Heads,
    HFConfig,
    LogGrowth,
    Part,
    ResidualConv,
    RMSNorm,
    SinkMoE,
    SinkTopK,
    TokenBias,
    family,
)
from easydel.layers.block import BlockLayer
from easydel.layers.linear import parameter
from easydel.layers.mlp import MLPLayer
from easydel.policy import Policy

FULL, SLIDING = "hybrid", "hybrid_sliding"
ATTENTION = {
    r"model\.embed_layernorm": "model.embed_tokens.embed_norm",
    r"self_attn\.token_bias\.r_proj": "self_attn.r_proj",
    r"self_attn\.token_bias\.table": "self_attn.rel_logits_proj.proj",
    "k_conv": "k_sconv",
    "v_conv": "v_sconv",
}
OWN = (
    CORRECTED
    | STACKED
    | {
        "attn_conv": "attn_sconv",
        "ffn_conv": "mlp_sconv",
        "output_gain": "global_scale",
        r"shared\.experts\.(gate_proj|up_proj|down_proj)\.weight": r"shared_experts.\1",
    }
)
FUSED = Fused("mlp.experts.gate_up_proj", ("mlp.experts.gate_proj", "mlp.experts.up_proj"))
AHEAD = r"model\.mtp\..*"  # layers that predict tokens further ahead
EXACT = (r"\w+_conv\.conv1d", r"gate\.output_gain")
NAMES = base.NAMES.extended(ATTENTION | OWN, fused=(FUSED,), stacked_experts=True, ignored=(AHEAD,), exact=EXACT)


@dataclass(frozen=True, kw_only=True)
class ConvBlock(Block):
    """A block with a short convolution over `features` channels after each part."""

    conv: ResidualConv
    features: int

    def build(self, features: int, policy: Policy) -> ConvLayer:
        return ConvLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        convs = {name: self.conv.cache(batch, self.features, dtype) for name in ("attn_conv", "ffn_conv")}
        return super().cache(batch, length, dtype) | convs


class ConvLayer(BlockLayer):
    def __init__(self, record: ConvBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.attn_conv, self.ffn_conv = (record.conv.build(features, features, policy) for _ in range(2))

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        x_BTD = x_BTD + self.convolved("attn_conv", run("mixer", self.input_layernorm(x_BTD)), run)
        return x_BTD + self.convolved("ffn_conv", run("ffn", self.post_attention_layernorm(x_BTD)), run)

    def convolved(self, name: str, x_BTD: jax.Array, run: Any) -> jax.Array:
        """Returns a part's output after that convolution, whose state it keeps."""
        y_BTD, state = getattr(self, name)(x_BTD, x_BTD, run.context, None if run.cache is None else run.cache[name])
        if run.cache is not None:
            run.cache[name] = state
        return y_BTD


@dataclass(frozen=True)
class GainedGLU(GLU):
    """A GLU whose output is multiplied by a learned number."""

    def build(self, features: int, policy: Policy) -> GainedMLP:
        return GainedMLP(self, features, policy)


class GainedMLP(MLPLayer):
    def __init__(self, record: GainedGLU, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.output_gain = parameter((1,), policy)

    def __call__(self, x: jax.Array, context: Any, cache: Any) -> tuple[jax.Array, Any]:
        y, cache = super().__call__(x, context, cache)
        return y * self.output_gain[...].astype(y.dtype), cache


def check(c: HFConfig) -> None:
    """Refuses what no such model has."""
    c.only("tie_word_embeddings", False)
    c.only("number_of_conv_states", 4)


def heads(c: HFConfig, kind: str) -> Heads:
    if kind == FULL:
        return Heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim)
    return Heads(c.swa_num_attention_heads, c.swa_num_key_value_heads, c.swa_head_dim)


def mixers(c: HFConfig) -> list[Part]:
    norm, window, floor = RMSNorm(c.rms_norm_eps), c.sliding_window_size, c.get("log_scaling_n_floor")
    growth = None if floor is None else LogGrowth(c.log_scaling_alpha, floor)
    kinds: dict[str, Part] = {}
    for kind, extent, sight in ((FULL, c.rel_extent, Causal()), (SLIDING, window, Causal(window))):
        own, conv, bias = heads(c, kind), ResidualConv(c.conv_kernel_size), TokenBias(c.d_rel, extent)
        choices: dict[str, Any] = {"sight": sight, "growth": growth if kind == FULL else None}
        kinds[kind] = ConvAttention(own, conv, bias, norm, norm, 1 / own.dim, **choices)
    layers = range(c.num_hidden_layers)
    local = c.get("local_layer_ids", [layer for layer in layers if (layer + 1) % 6])
    return [kinds[kind] for kind in layer_types(c, [SLIDING if i in local else FULL for i in layers], (FULL, SLIDING))]


def ffns(c: HFConfig) -> list[Part]:
    c.only("shared_expert_sink", True)
    size, wide = c.moe_intermediate_size, c.get("dense_intermediate_size")
    size, wide = (size, c.intermediate_size) if wide is None else (c.intermediate_size, wide)
    router = SinkTopK(c.num_experts_per_tok, c.n_shared_experts, c.route_scale)
    sparse, dense = SinkMoE(c.n_routed_experts, GLU(size, c.hidden_act), router), GainedGLU(wide, c.hidden_act)
    return by_type(c, sparse, dense, c.get("dense_mlp_idx", 0))


@family("inkling_text", NAMES)
def inkling_text(c: HFConfig) -> Decoder:
    check(c)
    norm, own = RMSNorm(c.rms_norm_eps), {"conv": ResidualConv(c.conv_kernel_size), "features": c.hidden_size}
    both = zip(mixers(c), ffns(c), strict=True)
    blocks: list[Block] = [ConvBlock(mixer, ffn, attn_in=norm, ffn_in=norm, **own) for mixer, ffn in both]
    head = Head(tied=False, scale=1 / c.logits_mup_width_multiplier, rows=c.get("unpadded_vocab_size"))
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(norm=norm))
