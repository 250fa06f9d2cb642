"""Tiny models of gemma3_text."""

from __future__ import annotations

from cases import FULL, SLIDING, case

CASES = [
    case("gemma3_text", "pattern", head_dim=10, num_hidden_layers=5, sliding_window=5, sliding_window_pattern=2),
    case(
        "gemma3_text",
        "two-ropes",
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
        attention_bias=True,
        tie_word_embeddings=False,
        final_logit_softcapping=3.0,
    ),
]
