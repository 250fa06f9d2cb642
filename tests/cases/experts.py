"""Mixtures of experts made of other families' parts: latent or plain attention, shared experts, corrected routing."""

from __future__ import annotations

from cases.dense import MULTIPLIERS
from cases.moe import DEEPSEEK, case

GLM4_MOE = case(
    "glm4_moe",
    "groups-biased-qk-norm",
    head_dim=12,
    attention_bias=True,
    use_qk_norm=True,
    moe_intermediate_size=24,
    n_routed_experts=6,
    n_shared_experts=2,
    n_group=3,
    topk_group=2,
    routed_scaling_factor=1.7,
)
MINIMAX_M2 = case("minimax_m2", "part-of-each-head-turned", num_local_experts=5, head_dim=10, rotary_dim=6)
GLM4_MOE_LITE = case(
    "glm4_moe_lite",
    "last-layer-dense",
    **(DEEPSEEK | {"n_shared_experts": 1}),
    mlp_layer_types=["sparse", "sparse", "dense"],
    attention_bias=True,
    rope_interleave=False,
)
ERNIE4_5_MOE = case(
    "ernie4_5_moe",
    "biased-untied-some-dense-layers",
    num_hidden_layers=5,
    moe_intermediate_size=24,
    moe_num_experts=5,
    moe_k=3,
    moe_num_shared_experts=2,
    moe_layer_start_index=1,
    moe_layer_end_index=3,
    moe_layer_interval=2,
    use_bias=True,
    tie_word_embeddings=False,
)
GRANITEMOE = case("granitemoe", "multiplied-biased", **MULTIPLIERS, num_local_experts=5, attention_bias=True)
HUNYUAN_V1_MOE = case(
    "hunyuan_v1_moe",
    "alpha-biased-choices-by-layer",
    num_experts=5,
    moe_topk=[2, 3, 1],
    head_dim=10,
    attention_bias=True,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 20.0, "factor": 1.0},
    tie_word_embeddings=True,
)
DOTS1 = case(
    "dots1",
    "upper-layers-slide-biased",
    head_dim=10,
    attention_bias=True,
    sliding_window=5,
    max_window_layers=2,
    first_k_dense_replace=1,
    moe_intermediate_size=24,
    n_routed_experts=6,
    n_shared_experts=2,
    n_group=2,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.7,
)
FLEX_OLMO = case("flex_olmo", "biased-renormalized", num_experts=5, norm_topk_prob=True, attention_bias=True)
PHIMOE = case(  # transformers 5.23 always takes the short factors: with the same long ones only the gain differs
    "phimoe",
    "beyond-original-length-biased",
    num_local_experts=5,
    router_jitter_noise=0.3,
    attention_bias=True,
    lm_head_bias=True,
    sliding_window=7,
    original_max_position_embeddings=8,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0, 1.5, 2.0, 4.0],
        "long_factor": [1.0, 1.5, 2.0, 4.0],
        "short_mscale": 1.1,
        "long_mscale": 1.4,
        "original_max_position_embeddings": 8,
    },
)

CASES = [GLM4_MOE, MINIMAX_M2, GLM4_MOE_LITE, ERNIE4_5_MOE, GRANITEMOE, HUNYUAN_V1_MOE, DOTS1, FLEX_OLMO, PHIMOE]
