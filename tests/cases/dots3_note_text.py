"""Tiny models of dots3_note_text."""

from __future__ import annotations

from cases import EXPERTS, FULL, SLIDING, YARN, case
from cases.deepseek_v2 import DEEPSEEK

INDEXED = "indexed_attention"
OURS = {key: value for key, value in DEEPSEEK.items() if key != "first_k_dense_replace"}
OURS |= {"index_topk": 5, "index_head_dim": 14, "index_n_heads": 7, "shared_experts_intermediate_size": 26}
OURS |= {"head_dim": 16}
OWN = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 17, "kv_lora_rank": 15}
OWN |= {"qk_nope_head_dim": 8, "v_head_dim": 9}
FIRST = {f"swa_{key}": value for key, value in OWN.items()} | {"swa_head_dim": 16, "sliding_window_size": 5}
OWN |= {"head_dim": 16, "qk_rope_head_dim": 8}

CASES = [
    case(
        "dots3_note_text",
        "own-sizes",
        EXPERTS | OURS,
        layer_types=[INDEXED, SLIDING, FULL],
        per_layer_config={"1": OWN},
        sliding_window=5,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=1.7,
    ),
    case(
        "dots3_note_text",
        "first-settings",
        EXPERTS | OURS | FIRST,
        num_hidden_layers=4,
        layer_types=[FULL, SLIDING, FULL, SLIDING],
        moe_layer_freq=[1, 1, 0, 1],
        rope_theta=700.0,
        swa_rope_theta=300.0,
        norm_topk_prob=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    case(
        "dots3_note_text",
        "no-indexer-yarn",
        EXPERTS | OURS | FIRST,
        use_dsa=False,
        rope_scaling=YARN,
        first_k_dense_replace=2,
        moe_shared_expert_intermediate_size=28,
    ),
]
