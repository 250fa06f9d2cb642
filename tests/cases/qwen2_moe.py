"""Tiny models of qwen2_moe."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, case

SPARSE = {"num_experts": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 36}

CASES = [
    case("qwen2_moe", "plain", EXPERTS, **SPARSE),
    case(
        "qwen2_moe",
        "renormalized-some-dense-layers-sliding",
        EXPERTS,
        **SPARSE,
        num_hidden_layers=6,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        qkv_bias=False,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=4,
        tie_word_embeddings=True,
    ),
    case(
        "qwen2_moe",
        "layer-types",
        EXPERTS,
        **SPARSE,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=[FULL, SLIDING, SLIDING],
    ),
]
