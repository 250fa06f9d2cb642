"""MiniMax-M3 (MiniMax 2026, the model card of MiniMaxAI/MiniMax-M3): heads see a few blocks of keys each, chosen by an
indexer, and feed-forwards are clamped."""

from dataclasses import replace
from typing import Any

from easydel.families import llama as base
from easydel.families._experts import CORRECTED, GATES, STACKED, by_type
from easydel.families._layers import FULL, checked_types, layer_types
from easydel.families._parts import (
    GATE_UP,
    Block,
    BlockIndexer,
    Decoder,
    Fused,
    HFConfig,
    MoE,
    Part,
    QKNorm,
    RMSNorm,
    Rope,
    TopK,
    family,
)
from easydel.families.gpt_oss import ClampedGLU

SPARSE = "minimax_m3_sparse"
SHARED = ("shared_expert.gate_proj", "shared_expert.up_proj")
RENAMES = CORRECTED | STACKED | {"mlp.shared_expert": "mlp.shared_experts", r"indexer\.w([qk])": r"indexer.\1_proj"}
FUSED = (GATES, Fused("shared_expert.gate_up_proj", SHARED), Fused("mlp.gate_up_proj", GATE_UP))
NAMES = base.NAMES.extended(RENAMES, fused=FUSED, stacked_experts=True)
# Older files have the indexer's settings in an object, by other names.
OBJECT = "sparse_attention_config"
SETTINGS = {
    "heads": ("index_n_heads", "sparse_num_index_heads"),
    "dim": ("index_head_dim", "sparse_index_dim"),
    "block": ("index_block_size", "sparse_block_size"),
    "count": ("index_topk_blocks", "sparse_topk_blocks"),
    "local": ("index_local_blocks", "sparse_local_block"),
}
INERT = {"hidden_act": "the activation is always a clamped SwiGLU", "rotary_dim": "partial_rotary_factor says it"}


def mixers(c: HFConfig) -> list[Part]:
    older, norm, layers = c.inside(OBJECT), RMSNorm(c.rms_norm_eps, offset=1.0), c.num_hidden_layers
    plain = base.attention(c, norms=QKNorm(norm))
    assert isinstance(plain.position, Rope)
    own: dict[str, Any] = {name: older.get(old, getattr(c, new)) for name, (new, old) in SETTINGS.items()}
    indexed = replace(
        plain, select=BlockIndexer(**own, readers=c.num_attention_heads, position=plain.position, norm=norm)
    )
    stated = older.get("sparse_attention_freq", [0] * layers)
    kinds = layer_types(c, [SPARSE if sparse else FULL for sparse in stated], (SPARSE, FULL))
    return [indexed if kind == SPARSE else plain for kind in kinds]


def ffns(c: HFConfig) -> list[Part]:
    def clamped(size: int) -> ClampedGLU:
        return ClampedGLU(size, "silu", alpha=c.swiglu_alpha, limit=c.swiglu_limit)

    choice = {"renormalize": True, "scale": c.routed_scaling_factor, "score": "sigmoid", "corrected": True}
    router = TopK(c.num_experts_per_tok, **choice)
    sparse = MoE(c.num_local_experts, clamped(c.intermediate_size), router, clamped(c.shared_intermediate_size))
    stated = checked_types(c, "moe_layer_freq", c.get("moe_layer_freq") or [1] * c.num_hidden_layers, (0, 1))
    default = ["sparse" if has else "dense" for has in stated]
    return by_type(c, sparse, clamped(c.dense_intermediate_size), default=default)


@family("minimax_m3_vl_text", NAMES, inert=INERT)
def minimax_m3_vl_text(c: HFConfig) -> Decoder:
    norm = RMSNorm(c.rms_norm_eps, offset=1.0)
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer, ffn in zip(mixers(c), ffns(c), strict=True)]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)
