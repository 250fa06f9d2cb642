"""ZAYA1 (Zyphra 2025, arXiv:2511.17127): convolutions in attention, routers that are MLPs, and scaled residuals."""

from easydel.families import llama as base
from easydel.families._experts import GATES, STACKED
from easydel.families._layers import layer_types
from easydel.families._parts import (
    CCA,
    GLU,
    Affine,
    Causal,
    Decoder,
    Embed,
    Head,
    Heads,
    HFConfig,
    MLPRouter,
    MoE,
    RMSNorm,
    ScaledJoins,
    family,
    rope_from_settings,
)

PLAIN, WINDOWED = "hybrid", "hybrid_sliding"
ATTENTION = {
    "self_attn.q_proj": "self_attn.qkv_proj.q_proj",
    "self_attn.k_proj": "self_attn.qkv_proj.k_proj",
    "self_attn.own_v_proj": "self_attn.qkv_proj.v_proj_current",
    "self_attn.last_v_proj": "self_attn.qkv_proj.v_proj_delayed",
    "self_attn.conv_channels": "self_attn.qkv_proj.conv_qk_depthwise",
    "self_attn.conv_heads": "self_attn.qkv_proj.conv_qk_grouped",
    "self_attn.key_gain": "self_attn.qk_norm.temp",
}
ROUTER = {rf"mlp\.gate\.{name}": f"mlp.gate.router_mlp.{name}" for name in ("norm", "fc1", "fc2", "out_proj")}
ROUTER |= {"gate.state_gain": "gate.router_states_scale", "gate.correction_bias": "gate.balancing_biases"}
RESIDUALS = {
    r"joins\.mixer": "post_attention_residual_scale",
    r"joins\.ffn": "post_mlp_residual_scale",
    r"branch\.weight": "hidden_states_scale",
    r"branch\.bias": "hidden_states_bias",
    r"read\.weight": "residual_scale",
    r"read\.bias": "residual_bias",
    r"model\.embed_layernorm\.weight": "model.input_hidden_states_scale",
    r"model\.embed_layernorm\.bias": "model.input_hidden_states_bias",
}
NAMES = base.NAMES.extended(ATTENTION | ROUTER | RESIDUALS | STACKED, fused=(GATES,), stacked_experts=True)


@family("zaya", NAMES)
def zaya(c: HFConfig) -> Decoder:
    c.only("num_experts_per_tok", 1)
    norm, blocks = RMSNorm(c.rms_norm_eps), []
    heads = Heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim, biased="qkvo" if c.attention_bias else "")
    for layer, kind in enumerate(layer_types(c, [PLAIN] * c.num_hidden_layers, (PLAIN, WINDOWED))):
        position = rope_from_settings(c.rope(kind), c.head_dim)
        sight = Causal(c.sliding_window if kind == WINDOWED else None)
        mixer = CCA(c.hidden_size, heads, position, (c.cca_time0, c.cca_time1), sight)
        router = MLPRouter(c.router_hidden_size, norm, follows=layer > 0)
        ffn = MoE(c.num_experts, GLU(c.moe_intermediate_size, c.hidden_act), router)
        blocks.append(ScaledJoins(mixer, ffn, attn_in=norm, ffn_in=norm, read=Affine(), branch=Affine()))
    head, embed = Head(c.tie_word_embeddings, bias=c.lm_head_bias), Embed(norm=Affine(), float32=True)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=embed)
