"""Tiny models of dbrx."""

from __future__ import annotations

from cases import case

SIZES = {"d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 64}
# transformers needs this theta and turns by that of `rope_parameters`
HEADS = {"kv_n_heads": 2, "clip_qkv": 0.7, "rope_theta": 10000.0}
FFN = {"ffn_hidden_size": 20, "moe_num_experts": 5}

CASES = [
    case("dbrx", "clipped", SIZES, attn_config=HEADS, ffn_config=FFN | {"moe_top_k": 2}),
    case(
        "dbrx",
        "not-renormalized",
        SIZES,
        attn_config=HEADS,
        ffn_config=FFN | {"moe_top_k": 3, "moe_normalize_expert_weights": None, "ffn_act_fn": {"name": "gelu"}},
    ),
]
