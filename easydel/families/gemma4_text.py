"""Gemma 4 (Gemma Team 2026, ai.google.dev/gemma/docs/core/model_card_4): Gemma 3n's inputs for layers and shared keys.

Full layers have heads of another size, may use keys as values, and rotate a part of their channels. A layer's output is
multiplied by a constant of its own. Mixtures have experts beside each dense feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families import gemma2
from easydel.families._layers import FULL, alternating, shared_keys
from easydel.families._parts import (
    GLU,
    Attention,
    Block,
    Causal,
    Decoder,
    Embed,
    Fused,
    Head,
    Heads,
    HFConfig,
    LayerInput,
    MoE,
    Names,
    Part,
    QKNorm,
    RMSNorm,
    TokenInputs,
    TopK,
    Weights,
    family,
    rope_from_settings,
)
from easydel.layers.block import BlockLayer, Flow
from easydel.layers.context import Context
from easydel.layers.experts import Experts
from easydel.layers.linear import buffer, parameter
from easydel.layers.moe import Gate
from easydel.policy import Policy

PER_LAYER = {
    "per_layer.embed_tokens": "embed_tokens_per_layer",
    "per_layer.projection": "per_layer_model_projection",
    "per_layer.norm": "per_layer_projection_norm",
    "per_layer_input.gate": "per_layer_input_gate",
    "per_layer_input.projection": "per_layer_projection",
    "per_layer_input.norm": "post_per_layer_input_norm",
}
EXPERTS = {
    "mlp.dense": "mlp",
    "mlp.dense_in": "pre_feedforward_layernorm",
    "mlp.dense_out": "post_feedforward_layernorm_1",
    "mlp.experts_in": "pre_feedforward_layernorm_2",
    "mlp.experts_out": "post_feedforward_layernorm_2",
    "mlp.gate": "router.proj",
    "mlp.gate.input_gain": "router.scale",
    "mlp.gate.expert_gain": "router.per_expert_scale",
    r"mlp\.experts\.(gate_up_proj|down_proj)\.weight": r"experts.\1",
}
FUSED = Fused("experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj"))
NAMES = gemma2.NAMES.extended(PER_LAYER | EXPERTS, fused=(FUSED,), stacked_experts=True)


@dataclass(frozen=True)
class ScaledBlock(Block):
    """A block whose output is multiplied by a constant of the layer, after its own input was added, if it has one."""

    each: LayerInput | None = None

    def build(self, features: int, policy: Policy) -> ScaledLayer:
        return ScaledLayer(self, features, policy)


class ScaledLayer(BlockLayer):
    def __init__(self, record: ScaledBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.per_layer_input = None if record.each is None else record.each.build(features, policy)
        self.layer_scalar = buffer((1,), jnp.float32)

    def __call__(self, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        flow, cache = super().__call__(flow, context, cache)
        x_BTD = flow["x"]
        if self.per_layer_input is not None:
            x_BTD = x_BTD + self.per_layer_input(x_BTD, context, None)[0]
        x_BTD = x_BTD * self.layer_scalar[...].astype(x_BTD.dtype)
        return {**flow, "x": self.policy.shard_hidden(x_BTD)}, cache


@dataclass(frozen=True)
class ScaledTopK(TopK):
    """A choice by the normed input times a scale for each channel; each expert's weight has a scale too."""

    eps: float = 1e-6

    def build(self, experts: int, features: int, policy: Policy) -> Gate:
        return ScaledGate(self, experts, features, policy)


class ScaledGate(Gate):
    def __init__(self, router: ScaledTopK, experts: int, features: int, policy: Policy):
        super().__init__(router, experts, features, policy)
        self.input_gain, self.expert_gain = parameter((features,), policy), parameter((experts,), policy)
        self.norm = RMSNorm(router.eps, scaled=False)

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        scale_D = self.input_gain[...].astype(jnp.float32) * x_BTD.shape[-1] ** -0.5
        weights_BTK, chosen_BTK = super().__call__(self.norm.normalise(x_BTD.astype(jnp.float32)) * scale_D, context)
        return weights_BTK * self.expert_gain[...].astype(jnp.float32)[chosen_BTK], chosen_BTK


@dataclass(frozen=True)
class DenseAndExperts(Part):
    """norm(dense(norm(x))) + norm(experts(norm(x))), each norm with a scale of its own; the router reads x itself."""

    dense: GLU
    experts: MoE
    norm: RMSNorm

    def build(self, features: int, policy: Policy) -> DenseAndExpertsLayer:
        return DenseAndExpertsLayer(self, features, policy)


class DenseAndExpertsLayer(nnx.Module):
    def __init__(self, record: DenseAndExperts, features: int, policy: Policy):
        moe, norm = record.experts, record.norm
        self.dense_in, self.dense_out = norm.build(features, policy), norm.build(features, policy)
        self.dense = record.dense.build(features, policy)
        self.experts_in, self.experts_out = norm.build(features, policy), norm.build(features, policy)
        self.gate = moe.router.build(moe.experts, features, policy)
        self.experts = Experts(moe.experts, moe.expert, features, policy, moe.weigh)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        dense_BTD, _ = self.dense(self.dense_in(x_BTD), context, None)
        experts_BTD = self.experts(self.experts_in(x_BTD), *self.gate(x_BTD, context))
        return self.dense_out(dense_BTD) + self.experts_out(experts_BTD), cache


def mixers(c: HFConfig, kinds: Sequence[str]) -> list[Attention]:
    """Each layer's attention. Files state sizes of full layers apart, or those of each layer that has its own."""
    norms = QKNorm(RMSNorm(c.rms_norm_eps), values=RMSNorm(c.rms_norm_eps, scaled=False))
    dim, kv, biased = c.head_dim, c.num_key_value_heads, "qkvo" if c.attention_bias else ""
    wide, own, equal = c.get("global_head_dim", 512), c.get("num_global_key_value_heads"), c.attention_k_eq_v
    stated = c.inside("per_layer_config")
    own_sizes = {int(key): stated.inside(key) for key in stated}  # transformers writes "05"

    def heads(layer: int, kind: str) -> Heads:
        keys_as_values, full = equal and kind == FULL, kind == FULL
        sizes = (wide if full else dim, own or kv if full and equal else kv)
        if own_sizes:
            mine = own_sizes.get(layer, {})
            sizes = (mine.get("head_dim", dim), mine.get("num_key_value_heads", kv))
        return Heads(c.num_attention_heads, sizes[1], sizes[0], biased=biased, keys_as_values=keys_as_values)

    found = []
    for layer, (kind, keys) in enumerate(zip(kinds, shared_keys(c, kinds), strict=True)):
        sizes, sight = heads(layer, kind), Causal(None if kind == FULL else c.sliding_window)
        position = rope_from_settings(c.rope(kind), sizes.dim)
        found.append(Attention(sizes, position, sight, Weights(scale=1.0), norms, keys=keys))
    return found


def dense(c: HFConfig) -> list[GLU]:
    """Each layer's dense feed-forward; those of layers without keys of their own may be twice as wide."""
    layers, size, wide = c.num_hidden_layers, c.intermediate_size, 2 if c.use_double_wide_mlp else 1
    own = layers - c.num_kv_shared_layers
    return [GLU(size * (wide if layer >= own else 1), c.hidden_activation) for layer in range(layers)]


def ffns(c: HFConfig) -> list[Part]:
    if not c.enable_moe_block:
        return list(dense(c))
    norm, router = RMSNorm(c.rms_norm_eps), ScaledTopK(c.top_k_experts, renormalize=True, eps=c.rms_norm_eps)
    experts = MoE(c.num_experts, GLU(c.moe_intermediate_size, c.hidden_activation), router)
    return [DenseAndExperts(glu, experts, norm) for glu in dense(c)]


def unused_keys(c: HFConfig) -> tuple[str, ...]:
    """Patterns of projections to keys and values that a file may have though no layer uses them."""
    layers, shared = c.num_hidden_layers, c.num_kv_shared_layers
    unused = "|".join(str(layer) for layer in range(layers - shared, layers))
    return (rf"model\.layers\.({unused})\.self_attn\.[kv]_(proj|norm)\..*",) if shared else ()


def names(c: HFConfig) -> Names:
    return NAMES.extended(ignored=unused_keys(c))


def decoder(c: HFConfig, ffns: Sequence[Part], width: int = 0) -> Decoder:
    """The decoder with these feed-forwards, and `width` channels of its own for each layer."""
    c.only("use_bidirectional_attention", None, "vision")  # tokens of images see each other, text never does
    kinds, norm = [*alternating(c, 6)[:-1], FULL], RMSNorm(c.rms_norm_eps)
    each = LayerInput(width, c.hidden_activation, norm) if width else None
    blocks: list[Block] = []
    for mixer, ffn in zip(mixers(c, kinds), ffns, strict=True):
        ffn_in = None if isinstance(ffn, DenseAndExperts) else norm
        blocks.append(ScaledBlock(mixer, ffn, norm, norm, ffn_in, norm, each=each))
    head = Head(c.tie_word_embeddings, softcap=c.final_logit_softcapping)
    record = Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(scale=c.hidden_size**0.5))
    return replace(record, per_layer=TokenInputs(c.vocab_size_per_layer_input, width, norm) if width else None)


@family("gemma4_text", names)
def gemma4_text(c: HFConfig) -> Decoder:
    return decoder(c, ffns(c), c.hidden_size_per_layer_input or 0)
