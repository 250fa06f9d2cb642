"""Tiny models of bailing_hybrid."""

from __future__ import annotations

from cases import EXPERTS, FULL, YARN, case
from cases.kimi_linear import LATENT, LINEAR

OURS = EXPERTS | LATENT | {"head_dim": 10, "num_experts": 6, "moe_intermediate_size": 24, "num_shared_experts": 2}
OURS |= {"num_expert_group": 3, "topk_group": 2}

CASES = [
    case("bailing_hybrid", "plain", OURS, layer_group_size=2, num_hidden_layers=4, first_k_dense_replace=1),
    case(
        "bailing_hybrid",
        "free-decays-biased-yarn",
        OURS,
        layer_types=[FULL, LINEAR, FULL],
        mlp_layer_types=["sparse", "dense", "sparse"],
        kda_safe_gate=False,
        short_conv_kernel_size=3,
        attention_bias=True,
        moe_renormalize=False,
        rope_parameters=YARN,
    ),
    case("bailing_hybrid", "slower-decays", OURS, layer_types=[LINEAR, LINEAR, FULL], kda_lower_bound=-2.0),
]
