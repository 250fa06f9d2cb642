"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv:2405.04434): latent attention, shared and routed experts, dense first layers."""

from easydel.families import llama as base
from easydel.families._experts import FUSED_BY_PEFT, after_first
from easydel.families._parts import (
    MLA,
    Decoder,
    Groups,
    HFConfig,
    RMSNorm,
    TopK,
    Yarn,
    family,
    rope_from_settings,
    yarn_gain,
)

NAMES = base.NAMES.extended({"shared_expert": "shared_experts"})


def latent_attention(c: HFConfig, *, interleaved: bool = True, value_dim: int | None = None) -> MLA:
    """The scale grows with YaRN's stretch where `mscale_all_dim` says so; latents have norms of their own eps.

    `value_dim` is the size of value heads where the config states none.
    """
    settings, plain, rotated, heads = c.rope(), c.qk_nope_head_dim, c.qk_rope_head_dim, c.num_attention_heads
    c.only("num_key_value_heads", heads, default=heads)
    c.only("qk_head_dim", plain + rotated)
    position, scale = rope_from_settings(settings, rotated, interleaved=interleaved), (plain + rotated) ** -0.5
    if isinstance(position.scaling, Yarn) and settings.get("mscale_all_dim"):
        scale *= yarn_gain(position.scaling.factor, settings["mscale_all_dim"]) ** 2
    latent = {"q_rank": c.q_lora_rank, "norm": RMSNorm(1e-6), "bias": c.attention_bias}
    values = c.v_head_dim if value_dim is None else c.get("v_head_dim", value_dim)
    return MLA(heads, plain, values, c.kv_lora_rank, position, scale=scale, **latent)


@family("deepseek_v2", NAMES, inert={"head_dim": "it follows from the others"}, peft_lacks=FUSED_BY_PEFT)
def deepseek_v2(c: HFConfig) -> Decoder:
    c.only("scoring_func", "softmax")
    method = c.only("topk_method", "greedy", "group_limited_greedy")
    groups = Groups(c.n_group, c.topk_group)
    router = TopK(c.num_experts_per_tok, scale=c.routed_scaling_factor, groups=None if method == "greedy" else groups)
    mixers = [latent_attention(c)] * c.num_hidden_layers
    return base.pre_norm(c, mixers, after_first(c, router, bias=c.mlp_bias))
