"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv:2405.04434): latent attention, shared and routed experts, dense first layers."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import UnsupportedModelError
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.mla import MLA
from easydel.layers.mlp import GLU
from easydel.layers.moe import Groups, MoE, TopK
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Part
from easydel.layers.rope import Yarn, rope_from_settings, yarn_gain

NAMES = base.NAMES.extended({"shared_expert": "shared_experts"})
LATENTS = {"kv_lora_rank": 512, "q_lora_rank": 1536}
HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
EXPERTS = {"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1407, "first_k_dense_replace": 0}
ROUTING = {"n_group": None, "topk_group": None, "routed_scaling_factor": 1.0, "moe_layer_freq": 1}
DEFAULTS = base.DEFAULTS | LATENTS | HEADS | EXPERTS | ROUTING | {"vocab_size": 102400}
INERT = ("head_dim", "qk_head_dim")  # they follow from the other sizes


def latent_attention(c: HFConfig, *, interleaved: bool = True) -> MLA:
    """The scale grows with YaRN's stretch where `mscale_all_dim` says so; latents have norms of their own eps."""
    settings, plain, rotated, heads = c.rope(), c.qk_nope_head_dim, c.qk_rope_head_dim, c.num_attention_heads
    require(c, "num_key_value_heads", c.get("num_key_value_heads", heads), heads)
    position, scale = rope_from_settings(settings, rotated, interleaved=interleaved), (plain + rotated) ** -0.5
    if isinstance(position.scaling, Yarn) and settings.get("mscale_all_dim"):
        scale *= yarn_gain(position.scaling.factor, settings["mscale_all_dim"]) ** 2
    latent = {"q_rank": c.q_lora_rank, "norm": RMSNorm(1e-6), "bias": c.attention_bias}
    return MLA(heads, plain, c.v_head_dim, c.kv_lora_rank, position, scale=scale, **latent)


def experts(c: HFConfig, router: TopK, *, bias: bool = False) -> MoE:
    """Shared experts are one of the size of all of them; only they may have a `bias`."""
    expert, shared = GLU(c.moe_intermediate_size, c.hidden_act), c.moe_intermediate_size * (c.n_shared_experts or 0)
    return MoE(c.n_routed_experts, expert, router, GLU(shared, c.hidden_act, bias) if shared else None)


def feed_forwards(c: HFConfig, router: TopK, *, bias: bool = False) -> list[Part]:
    """Experts in every `moe_layer_freq`-th layer from `first_k_dense_replace` on."""
    sparse = experts(c, router, bias=bias)
    dense, first, step = GLU(c.intermediate_size, c.hidden_act, bias), c.first_k_dense_replace, c.moe_layer_freq
    return [sparse if i >= first and i % step == 0 else dense for i in range(c.num_hidden_layers)]


def require(c: HFConfig, key: str, value: object, *known: object) -> None:
    if value not in known:
        raise UnsupportedModelError(f"{key} is {value!r}, known: {', '.join(map(repr, known))}", file=c.file)


@family("deepseek_v2", NAMES, defaults=DEFAULTS, inert=INERT)
def deepseek_v2(c: HFConfig) -> Decoder:
    require(c, "scoring_func", c.get("scoring_func", "softmax"), "softmax")
    require(c, "topk_method", method := c.get("topk_method", "greedy"), "greedy", "group_limited_greedy")
    groups = Groups(c.n_group, c.topk_group)
    router = TopK(c.num_experts_per_tok, scale=c.routed_scaling_factor, groups=None if method == "greedy" else groups)
    mixers = [latent_attention(c)] * c.num_hidden_layers
    return base.pre_norm(c, mixers, feed_forwards(c, router, bias=c.mlp_bias))
