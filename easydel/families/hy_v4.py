"""Hunyuan 4 (Tencent 2026, the model card of tencent/Hy4-preview): GLM-5 with gates and sinks, and several streams."""

from dataclasses import replace

from easydel.families import deepseek_v2 as v2, deepseek_v32 as v32, glm_moe_dsa as glm
from easydel.families._experts import CORRECTED, GATES, STACKED, by_type, corrected_router, experts
from easydel.families._parts import (
    GLU,
    Block,
    Decoder,
    Gate,
    HFConfig,
    HyperBlock,
    HyperConnections,
    Indexer,
    LayerNorm,
    LimitedGLU,
    Names,
    Part,
    RMSNorm,
    SharedIndexer,
    family,
)

HYPER = {
    rf"{ours}\.{leaf}": f"{theirs}_{other}"
    for ours, theirs in {
        "attn_hc": "hc_pre.hc_attn_layer.hc",
        "ffn_hc": "hc_pre.hc_mlp_layer.hc",
        r"stream\.weights": "hc_pre.hc_head.hc_head",
    }.items()
    for leaf, other in {"weight": "fn", "bias": "base", "gain": "scale"}.items()
}
RENAMES = CORRECTED | STACKED | HYPER | {"gate_proj": "linear_gate", "sinks": "learnable_sink_param"}
NAMES = v2.NAMES.extended(RENAMES, fused=(GATES,), stacked_experts=True, exact=(r"indexer\.k_norm",))
INERT = {"head_dim": v32.INERT["head_dim"], "learnable_sink_init": "how training begins"}


def names(c: HFConfig) -> Names:
    """transformers writes the gates of feed-forwards as `linear_gate` too, and reads both names."""
    places = [f"model.layers.{i}.mlp.{ffn}" for i in range(c.num_hidden_layers) for ffn in ("", "shared_experts.")]
    gates = {f"{at}linear_gate.weight": (f"{at}gate_proj.weight",) for at in places}
    return NAMES.extended(substitutes=gates, ignored=(r"model\.mtp_layers\..*",))


def mixers(c: HFConfig) -> list[Part]:
    """Indexers rotate the last channels. By default the first layer has one, the second, and every fourth after it."""
    own = v32.attention(c)
    assert own.position is not None
    assert isinstance(own.select, Indexer)
    halves = replace(own.position, interleaved=False)
    indexer = replace(own.select, position=replace(halves, trailing=True), norm=LayerNorm(c.rms_norm_eps))
    own = replace(own, position=halves, select=indexer, gate=Gate(), sinks=True)
    default = [glm.INDEXES if i == 0 or i % 4 == 1 else glm.SHARES for i in range(c.num_hidden_layers)]
    kinds = glm.checked_indexers(c, "indexer_types", c.get("indexer_types", default))
    return [own if kind == glm.INDEXES else replace(own, select=SharedIndexer()) for kind in kinds]


@family("hy_v4", names, inert=INERT)
def hy_v4(c: HFConfig) -> Decoder:
    norm = RMSNorm(c.rms_norm_eps)
    expert = LimitedGLU(c.moe_intermediate_size, c.hidden_act, limit=c.swiglu_limit)
    sparse = replace(experts(c, corrected_router(c)), expert=expert)
    ffns = by_type(c, sparse, GLU(c.intermediate_size, c.hidden_act), 1)
    own = {"gain": c.hc_magnitude, "floor": c.hc_eps}
    streams = HyperConnections(c.hc_mult, replace(norm, scaled=False), c.hc_eps, **own)
    parts = zip(mixers(c), ffns, strict=True)
    blocks: list[Block] = [HyperBlock(one, ffn, attn_in=norm, ffn_in=norm, streams=streams) for one, ffn in parts]
    return replace(Decoder.from_hf(c, blocks=blocks, final_norm=norm), stream=streams)
