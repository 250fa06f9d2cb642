"""Ling 3.0 (Ling Team 2026, the model card of inclusionAI/Ling-3.0-Flash): Kimi's delta rule, latent attention.

The rule's channels decay by themselves. The attention, in every sixth layer, is gated; experts are DeepSeek-V3's.
"""

from dataclasses import replace

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import by_type, corrected_router
from easydel.families._layers import FULL, LINEAR, layer_types
from easydel.families._parts import GLU, MLA, Decoder, DeltaNet, Gate, HFConfig, MoE, Names, RMSNorm, family

LINEAR_NAMES = {"in_proj_a": "f_proj", "in_proj_z": "g_proj", "norm": "o_norm", "out_proj": "dense"}
RENAMES = {
    r"model\.embed_tokens": "model.word_embeddings",
    "linear_attn": "attention",
    r"linear_attn\.in_proj_([qkvb])": r"attention.\1_proj",
    **{rf"linear_attn\.{ours}": f"attention.{theirs}" for ours, theirs in LINEAR_NAMES.items()},
    "self_attn": "attention",
    r"self_attn\.gate_proj": "attention.g_proj",
    r"self_attn\.o_proj": "attention.dense",
    r"gate\.correction_bias": "gate.expert_bias",
}
NAMES = v2.NAMES.extended(RENAMES, exact=(r"\w*conv1d", "A_log", "dt_bias"))


def names(c: HFConfig) -> Names:
    """Layers past the last one predict tokens further ahead."""
    last = c.num_hidden_layers
    ahead = "|".join(str(layer) for layer in range(last, last + c.num_mtp_layers))
    return NAMES.extended(ignored=(rf"model\.layers\.({ahead})\..*",) if ahead else ())


def linear(c: HFConfig) -> DeltaNet:
    heads, dim = c.get("linear_num_heads", c.num_attention_heads), c.get("linear_head_dim", c.head_dim)
    width, least = c.get("linear_conv_kernel_dim", c.short_conv_kernel_size), c.kda_lower_bound
    how = {"gate_act": "sigmoid", "by_channel": True, "least": least if c.kda_safe_gate else None}
    return DeltaNet(heads, heads, dim, dim, width, c.hidden_act, RMSNorm(c.rms_norm_eps), **how)


def latent_attention(c: HFConfig) -> MLA:
    return replace(v2.latent_attention(c), q_rank=None, gate=Gate(per_head=True))


@family(
    "bailing_hybrid",
    names,
    defaults={"q_lora_rank": None},
    inert={"mtp_loss_scaling_factor": "for training of layers that predict further ahead"},
)
def bailing_hybrid(c: HFConfig) -> Decoder:
    layers, group, act = c.num_hidden_layers, c.layer_group_size, c.hidden_act
    mixers = {LINEAR: linear(c), FULL: latent_attention(c)}
    kinds = layer_types(c, [LINEAR if (i + 1) % group else FULL for i in range(layers)], tuple(mixers))
    expert, shared = (GLU(c.moe_intermediate_size * count, act) for count in (1, c.n_shared_experts))
    sparse = MoE(c.num_local_experts, expert, corrected_router(c), shared)
    ffns = by_type(c, sparse, GLU(c.intermediate_size, act), c.first_k_dense_replace)
    return base.pre_norm(c, [mixers[kind] for kind in kinds], ffns)
