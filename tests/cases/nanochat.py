"""Tiny models of nanochat."""

from __future__ import annotations

from cases import YARN, case

CASES = [
    case("nanochat", "capped", final_logit_softcapping=2.0),
    case(
        "nanochat",
        "biased-tied-stretched",
        attention_bias=True,
        final_logit_softcapping=None,
        hidden_act="silu",
        rope_parameters=YARN,
        tie_word_embeddings=True,
    ),
]
