"""Tiny models of gemma2."""

from __future__ import annotations

from typing import Any

from cases import FULL, SLIDING, case

SMALL_CAPS: dict[str, Any] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}

CASES = [
    case("gemma2", "capped", head_dim=10, query_pre_attn_scalar=12, sliding_window=5, **SMALL_CAPS),
    case(
        "gemma2",
        "uncapped-layer-types",
        head_dim=8,
        sliding_window=5,
        layer_types=[FULL, SLIDING, FULL],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
        tie_word_embeddings=False,
        hidden_activation="silu",
    ),
]
