"""Llama 4 (Meta 2025, ai.meta.com/blog/llama-4-multimodal-intelligence): chunks, layers without rope, experts.

Layers with a rope see chunks of the sequence; every fourth layer has no rope, sees everything, and scales its queries
up with their position.
"""

from typing import Any

from easydel.families import llama as base
from easydel.families._experts import GATES, STACKED
from easydel.families._layers import FULL, layer_types
from easydel.families._parts import (
    GLU,
    Attention,
    Causal,
    Chunks,
    ConfigError,
    Decoder,
    GrowingScale,
    HFConfig,
    MoE,
    Part,
    QKNorm,
    RMSNorm,
    TopK,
    family,
)

CHUNKED = "chunked_attention"
NAMES = base.NAMES.extended(
    STACKED | {"mlp": "feed_forward", "mlp.gate": "feed_forward.router"},
    fused=(GATES,),
    transposed=("experts.gate_up_proj", "experts.down_proj"),
    stacked_experts=True,
)


def mixers(c: HFConfig) -> list[Attention]:
    """Returns each layer's attention. `no_rope_layers` has 1 where there is a rope, as in SmolLM3."""
    interval, layers = c.no_rope_layer_interval, c.num_hidden_layers
    ropes = c.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(layers)]
    if len(ropes) < layers:
        raise ConfigError(f"no_rope_layers has {len(ropes)} entries for {layers} layers", file=c.file)
    kinds = layer_types(c, [CHUNKED if rope else FULL for rope in ropes[:layers]], (CHUNKED, FULL))
    l2 = QKNorm(RMSNorm(c.rms_norm_eps, scaled=False), rotated=True) if c.use_qk_norm else None
    growing, tuned = GrowingScale(c.attn_scale, c.floor_scale, shift=1), c.attn_temperature_tuning
    whole: dict[str, Any] = {"interleaved": True, "biased": c.attention_bias}

    def attention(rope: int, kind: str) -> Attention:
        own: dict[str, Any] = {"norms": l2} if rope else {"position": None, "scale": growing if tuned else None}
        return base.attention(c, **whole, **own, sight=Chunks(c.attention_chunk_size) if kind == CHUNKED else Causal())

    return [attention(rope, kind) for rope, kind in zip(ropes, kinds, strict=False)]


def ffns(c: HFConfig) -> list[Part]:
    """Returns each layer's feed-forward: weights multiply the experts' inputs, and one expert acts on every token."""
    layers, step = c.num_hidden_layers, c.interleave_moe_layer_step
    stated = c.get("moe_layers")
    sparse = set(range(step - 1, layers, step) if stated is None else stated)
    expert, dense = GLU(c.intermediate_size, c.hidden_act), GLU(c.intermediate_size_mlp, c.hidden_act)
    router = TopK(c.num_experts_per_tok, score="sigmoid")
    experts = MoE(c.num_local_experts, expert, router, shared=expert, weigh="inputs")
    return [experts if layer in sparse else dense for layer in range(layers)]


@family("llama4_text", NAMES)
def llama4_text(c: HFConfig) -> Decoder:
    return base.pre_norm(c, mixers(c), ffns(c))
