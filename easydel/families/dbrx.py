"""DBRX (Databricks 2024, databricks.com/blog/introducing-dbrx-new-state-art-open-llm): clipped q, k and v, experts."""

from easydel.families import llama as base
from easydel.families._parts import (
    GLU,
    QKV,
    Block,
    Decoder,
    Fused,
    HFConfig,
    LayerNorm,
    MoE,
    Names,
    TopK,
    family,
)

EXPERTS = ("ffn.experts.mlp.w1", "ffn.experts.mlp.v1", "ffn.experts.mlp.w2")


def one_below_the_other(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of all experts' rows in one matrix."""
    return (shape[0] * shape[1], *shape[2:])


NAMES = Names(
    {
        r"model\.embed_tokens": "transformer.wte",
        r"model\.layers": "transformer.blocks",
        r"model\.norm": "transformer.norm_f",
        "input_layernorm": "norm_attn_norm.norm_1",
        "post_attention_layernorm": "norm_attn_norm.norm_2",
        "self_attn": "norm_attn_norm.attn",
        "o_proj": "out_proj",
        r"mlp\.gate": "ffn.router.layer",
        **{
            rf"mlp\.experts\.{ours}\.weight": theirs
            for ours, theirs in zip(("gate_proj", "up_proj", "down_proj"), EXPERTS, strict=True)
        },
    },
    fused=(Fused("self_attn.Wqkv", QKV),),
    transposed=EXPERTS[2:],
    stacked_experts=True,
    reshaped=dict.fromkeys(EXPERTS, one_below_the_other),
    prefix="transformer",
)


@family(
    "dbrx",
    NAMES,
    inert={
        "ffn_config.hidden_size": "the model's, whatever it says",
        "ffn_config.moe_jitter_eps": "noise in training",
        "ffn_config.moe_loss_weight": "of a loss",
    },
)
def dbrx(c: HFConfig) -> Decoder:
    heads, inner, settings = c.inside("attn_config"), c.inside("ffn_config"), c.rope()
    # transformers 5.23 requires this key but rotates by its own default; the authors' code rotates by the key
    settings["rope_theta"] = heads.get("rope_theta", settings["rope_theta"])
    c.only("num_key_value_heads", heads.kv_n_heads)
    mixer = base.attention(c, kv=heads.kv_n_heads, clip=heads.get("clip_qkv"), rope=settings)
    if renormalize := inner.moe_normalize_expert_weights is not None:
        inner.only("moe_normalize_expert_weights", 1)  # of sums, not of squares
    expert, norm = (
        GLU(inner.ffn_hidden_size, inner.inside("ffn_act_fn").get("name", "silu")),
        LayerNorm(1e-5, biased=False),
    )
    ffn = MoE(inner.moe_num_experts, expert, TopK(inner.moe_top_k, renormalize))
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
