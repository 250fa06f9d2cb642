"""Inkling 2 (Thinking Machines Lab 2026, the model card of thinkingmachines/Inkling-2-Small-MXFP8): Inkling whose parts
read blocks of layers by attention, with limits on lengths, gates, and softcapped experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.families import llama as base
from easydel.families._layers import layer_types
from easydel.families._parts import (
    GLU,
    BlockSums,
    Causal,
    ConvAttention,
    Decoder,
    Embed,
    Fused,
    Head,
    HFConfig,
    L2Clip,
    LogGrowth,
    MoE,
    Part,
    ResidualConv,
    RMSNorm,
    TokenBias,
    TokenConv,
    TopK,
    family,
    interleaved,
)
from easydel.families.inkling_text import AHEAD, FULL, SLIDING, ConvBlock, ConvLayer, check, heads
from easydel.layers.block_residual import BlockReader, with_sum
from easydel.layers.mlp import saved
from easydel.policy import Policy

MODEL = {
    r"model\.embed_tokens": "model.llm.embed",
    r"model\.embed_layernorm": "model.llm.embed_norm",
    r"stream\.query": "attn_res.output_query",
    r"model\.layers\.\*\.attn_reader\.query": "model.llm.attn_res.attn_queries.{:-1}",  # the first layer has none
    r"model\.layers\.\*\.ffn_reader\.query": "model.llm.attn_res.mlp_queries.*",
    "lm_head": "model.llm.unembed",
    "input_layernorm": "attn_norm",
    "q_input_layernorm": "q_input_norm",
    "k_input_layernorm": "k_input_norm",
    "v_input_layernorm": "v_input_norm",
    "post_attention_layernorm": "mlp_norm",
    r"attn_conv\.conv1d": "attn_sconv",
    r"ffn_conv\.conv1d": "mlp_sconv",
    r"mlp\.gate\.correction_bias": "mlp.gate.bias",
    r"experts\.gate_up_proj\.weight": "experts.w13_weight",
    r"experts\.down_proj\.weight": "experts.w2_weight",
}
ATTENTION = {
    "self_attn": "attn",
    r"self_attn\.q_proj": "attn.wq_du",
    r"self_attn\.k_proj": "attn.wk_dv",
    r"self_attn\.v_proj": "attn.wv_dv",
    r"self_attn\.o_proj": "attn.wo_ud",
    r"self_attn\.gate_proj": "attn.gate_attn",
    r"self_attn\.sink_proj": "attn.attn_sink_proj",
    r"self_attn\.q_norm\.weight": "attn.q_l2_clip.scale",
    r"self_attn\.token_bias\.r_proj": "attn.wr_du",
    r"self_attn\.token_bias\.table": "attn.rel_logits_proj.proj",
    r"self_attn\.token_bias\.clip\.weight": "attn.rel_l2_clip.scale",
}
CONVS = {
    rf"self_attn\.{part}_conv\.{ours}": f"attn.{part}_sconv{theirs}"
    for part in "kv"
    for ours, theirs in {"conv1d": "", "taps": ".static_w", r"weight_proj\.weight": ".weight_proj"}.items()
}
FUSED = Fused("experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj"), interleaved)
EXACT = (r"\w+_conv\.conv1d", r"mlp\.gate", r"(attn|ffn)_reader", "stream")
TABLE = {"exact": EXACT, "fused": (FUSED,), "stacked_experts": True, "ignored": (AHEAD,), "prefix": "model.llm"}
NAMES = base.NAMES.extended(MODEL | ATTENTION | CONVS, **TABLE)


@dataclass(frozen=True, kw_only=True)
class ReadingBlock(ConvBlock):
    """A block whose parts read the sums of earlier blocks of layers and the current sum, by attention.

    If it `begins` a block, its input ends the one before. The mixer has one input, or `inputs` of three, each with a
    norm of its own. The `first` layer's mixer reads the embeddings.
    """

    begins: bool
    inputs: int
    first: bool

    def build(self, features: int, policy: Policy) -> ReadingLayer:
        return ReadingLayer(self, features, policy)


class ReadingLayer(ConvLayer):
    def __init__(self, record: ReadingBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        norm = record.ffn_in
        assert norm is not None
        if record.inputs == 3:
            self.q_input_layernorm = norm.build(features, policy)
            self.k_input_layernorm = norm.build(features, policy)
            self.v_input_layernorm = norm.build(features, policy)
        self.attn_reader = None if record.first else BlockReader(record.inputs, features, policy)
        self.ffn_reader = BlockReader(1, features, policy)
        self.reading = record

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        mixed_BTD = self.convolved("attn_conv", run("mixer", self._mixer_input(x_BTD, run)), run).astype(jnp.float32)
        if self.reading.begins:
            run.flow = with_sum(run.flow, x_BTD)
        else:
            mixed_BTD = x_BTD.astype(jnp.float32) + mixed_BTD
        read_BTD = self.post_attention_layernorm(self.ffn_reader.read(run.flow, mixed_BTD)[0])
        fed_BTD = self.convolved("ffn_conv", run("ffn", read_BTD.astype(x_BTD.dtype)), run)
        return (mixed_BTD + fed_BTD).astype(x_BTD.dtype)

    def _mixer_input(self, x_BTD: jax.Array, run: Any) -> jax.Array | tuple[jax.Array, ...]:
        count = self.reading.inputs
        read = [x_BTD] * count if self.attn_reader is None else self.attn_reader.read(run.flow, x_BTD)
        if count == 1:
            return self.input_layernorm(read[0]).astype(x_BTD.dtype)
        norms = (self.q_input_layernorm, self.k_input_layernorm, self.v_input_layernorm)
        return tuple(norm(part).astype(x_BTD.dtype) for norm, part in zip(norms, read, strict=True))


@dataclass(frozen=True)
class SoftcappedGLU(GLU):
    """cap(gate) * sigmoid(gate) * cap(up), with caps by tanh of both, in float32."""

    gate_cap: float = 4.0
    up_cap: float = 25.0

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate_f32, up_f32 = saved(gate).astype(jnp.float32), saved(up).astype(jnp.float32)
        capped = self.gate_cap * jnp.tanh(gate_f32 / self.gate_cap)
        return (capped * jax.nn.sigmoid(gate_f32) * self.up_cap * jnp.tanh(up_f32 / self.up_cap)).astype(gate.dtype)


def mixers(c: HFConfig) -> dict[str, Part]:
    clip, window = c.qk_l2_clip_threshold, c.sliding_window_size
    rel_clip, values = L2Clip(c.rel_l2_clip_threshold, scaled=True), RMSNorm(c.rms_norm_eps, scaled=False)
    found: dict[str, Part] = {}
    for kind, extent in ((FULL, c.rel_extent), (SLIDING, window)):
        own, full = heads(c, kind), kind == FULL
        conv = TokenConv(c.conv_kernel_size, own.kv) if full else ResidualConv(c.conv_kernel_size, averaged=True)
        norms = (L2Clip(clip, scaled=True), L2Clip(clip), own.dim**-0.5, values)
        growth = LogGrowth(c.log_scaling_alpha, c.log_scaling_n_floor) if full else None
        sight = Causal(None if full else window)
        found[kind] = ConvAttention(own, conv, TokenBias(c.d_rel, extent, rel_clip), *norms, sight, growth, gated=True)
    return found


@family("inkling2_text", NAMES)
def inkling2_text(c: HFConfig) -> Decoder:
    check(c)
    c.only("scoring_func", "sigmoid")
    size, norm, layers = c.n_layers_per_attn_res_block, RMSNorm(c.rms_norm_eps), c.num_hidden_layers
    expert = SoftcappedGLU(c.moe_intermediate_size, "silu", gate_cap=c.mlp_gate_softcap, up_cap=c.mlp_up_softcap)
    choice = {"renormalize": True, "scale": c.route_scale, "score": "sigmoid", "corrected": True}
    ffn, kinds = MoE(c.n_routed_experts, expert, TopK(c.num_experts_per_tok, **choice)), mixers(c)
    shared = {"conv": ResidualConv(c.conv_kernel_size, averaged=True), "features": c.hidden_size}
    default, blocks = [SLIDING if (layer + 1) % 6 else FULL for layer in range(layers)], []
    for layer, kind in enumerate(layer_types(c, default, (FULL, SLIDING))):
        own = {"begins": layer % size == 0, "inputs": 3 if kind == FULL else 1, "first": layer == 0}
        attn_in = None if kind == FULL else norm
        blocks.append(ReadingBlock(kinds[kind], ffn, attn_in=attn_in, ffn_in=norm, **own, **shared))
    head = Head(tied=False, softcap=c.final_logit_softcapping, rows=c.unpadded_vocab_size)
    record = Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(norm=norm))
    return replace(record, stream=BlockSums(-(-layers // size)))
