"""Inkling with images and sound: the names of its files, in which rows of gates and of what they gate alternate."""

from easydel.weights.names import GATE_UP, Fused, Names, interleaved

IGNORED = (r"model\.(visual|audio|mtp)\..*",)  # the last: layers that predict tokens further ahead
ATTENTION = {r"self_attn\.([qk])_norm": r"attn.\1_norm", r"self_attn\.([kv])_conv\.conv1d": r"attn.\1_sconv"}
ATTENTION |= {
    rf"self_attn\.{ours}": f"attn.{theirs}"
    for ours, theirs in {
        "q_proj": "wq_du",
        "k_proj": "wk_dv",
        "v_proj": "wv_dv",
        "o_proj": "wo_ud",
        r"token_bias\.r_proj": "wr_du",
        r"token_bias\.table": "rel_logits_proj.proj",
    }.items()
}
REST = {
    r"model\.embed_tokens": "model.llm.embed",
    r"model\.embed_layernorm": "model.llm.embed_norm",
    "lm_head": "model.llm.unembed",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
    r"attn_conv\.conv1d": "attn_sconv",
    r"ffn_conv\.conv1d": "mlp_sconv",
    r"gate\.correction_bias": "gate.bias",
    "output_gain": "global_scale",
    r"mlp\.gate_up_proj": "mlp.w13_dn",
    r"mlp\.down_proj": "mlp.w2_md",
    r"mlp\.experts\.gate_up_proj\.weight": "mlp.experts.w13_weight",
    r"mlp\.experts\.down_proj\.weight": "mlp.experts.w2_weight",
    r"shared\.experts\.gate_up_proj\.weight": "shared_experts.shared_w13_weight",
    r"shared\.experts\.down_proj\.weight": "shared_experts.shared_w2_weight",
}
FUSED = tuple(
    Fused(f"{place}.gate_up_proj", tuple(f"{place}.{part}_proj" for part in ("gate", "up")), interleaved)
    for place in ("mlp.experts", "shared.experts")
)
DENSE = Fused("mlp.gate_up_proj", GATE_UP, interleaved)
NAMES = Names(ATTENTION | REST, fused=(*FUSED, DENSE), stacked_experts=True, prefix="model.llm")
