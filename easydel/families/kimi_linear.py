"""Kimi Linear (Kimi Team 2025, arXiv:2510.26692): a delta rule with a decay for each channel, latent attention without
positions in every fourth layer, and DeepSeek-V3's experts."""

from easydel.families import llama as base
from easydel.families._experts import CORRECTED
from easydel.families._layers import FULL, LINEAR, checked_types
from easydel.families._parts import (
    GLU,
    MLA,
    Decoder,
    DeltaNet,
    Groups,
    HFConfig,
    MoE,
    Names,
    RMSNorm,
    TopK,
    family,
)

DENSE, SPARSE = "dense", "sparse"
EXPERTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
LATENT = {
    "a_latent_proj": "f_a_proj",
    "in_proj_a": "f_b_proj",
    "z_latent_proj": "g_a_proj",
    "in_proj_z": "g_b_proj",
    "norm": "o_norm",
    "out_proj": "o_proj",
}
RENAMES = {
    "linear_attn": "self_attn",
    r"linear_attn\.in_proj_([qkvb])": r"self_attn.\1_proj",
    **{rf"linear_attn\.{ours}": f"self_attn.{theirs}" for ours, theirs in LATENT.items()},
    "mlp": "block_sparse_moe",
    r"mlp\.shared_expert": "block_sparse_moe.shared_experts",
    **{rf"mlp\.experts\.\*\.{ours}": f"block_sparse_moe.experts.*.{theirs}" for ours, theirs in EXPERTS.items()},
}


def one_by_head(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A dimension for each of a batch, its tokens and the channels of a head."""
    return (1, 1, *shape, 1)


def names(c: HFConfig) -> Names:
    """The first files call feed-forwards without experts `mlp`."""
    layers = [f"model.layers.{layer}" for layer in range(c.num_hidden_layers)]
    dense = {f"{at}.block_sparse_moe.{name}.weight": (f"{at}.mlp.{name}.weight",) for at in layers for name in EXPERTS}
    return base.NAMES.extended(RENAMES | CORRECTED, reshaped={"A_log": one_by_head}, substitutes=dense)


def mixer_types(c: HFConfig) -> list[str]:
    """The kind of each layer; the first files count layers from 1."""
    linear, layers = c.inside("linear_attn_config"), range(c.num_hidden_layers)
    attending, others = linear.get("full_attn_layers"), linear.get("kda_layers")
    if c.get("layer_types") is None and attending is not None and others is not None:
        return [FULL if i + 1 in attending else LINEAR if i + 1 in others else "no kind" for i in layers]
    return c.get("layer_types", [FULL if i and i % 4 == 0 else LINEAR for i in layers])


def linear(c: HFConfig) -> DeltaNet:
    own = c.inside("linear_attn_config")
    heads, dim = own.get("num_heads", c.linear_num_heads), own.get("head_dim", c.linear_head_dim)
    width, norm = own.get("short_conv_kernel_size", c.linear_conv_kernel_dim), RMSNorm(c.rms_norm_eps)
    return DeltaNet(heads, heads, dim, dim, width, c.hidden_act, norm, "sigmoid", by_channel=True, rank=dim)


def latent_attention(c: HFConfig) -> MLA:
    heads = c.num_attention_heads
    c.only("num_key_value_heads", heads, default=heads)
    how = {"q_rank": c.q_lora_rank, "bias": c.attention_bias, "unrotated_dim": c.qk_rope_head_dim}
    return MLA(heads, c.qk_nope_head_dim, c.v_head_dim, c.kv_lora_rank, None, RMSNorm(1e-6), **how)


@family("kimi_linear", names)
def kimi_linear(c: HFConfig) -> Decoder:
    mixers = {LINEAR: linear(c), FULL: latent_attention(c)}
    groups = Groups(c.n_group, c.topk_group, best=2)
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob, c.routed_scaling_factor, "sigmoid", True, groups)
    expert = GLU(c.moe_intermediate_size, c.hidden_act)
    shared = GLU(c.moe_intermediate_size * c.n_shared_experts, c.hidden_act)
    ffns = {
        DENSE: GLU(c.intermediate_size, c.hidden_act),
        SPARSE: MoE(c.num_local_experts, expert, router, shared),
    }
    first = c.get("first_k_dense_replace", 1)
    kinds = c.get("mlp_layer_types", [DENSE if i < first else SPARSE for i in range(c.num_hidden_layers)])
    types = checked_types(c, "layer_types", mixer_types(c), tuple(mixers))
    kinds = checked_types(c, "mlp_layer_types", kinds, tuple(ffns))
    return base.pre_norm(c, [mixers[kind] for kind in types], [ffns[kind] for kind in kinds])
