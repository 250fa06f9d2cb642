"""Tiny models of hrm_text."""

from __future__ import annotations

from cases import SIZES, case

OWN = SIZES | {"num_hidden_layers": 2, "head_dim": 10}
del OWN["num_key_value_heads"]
CASES = [
    case("hrm_text", "plain", OWN),
    case(
        "hrm_text",
        "causal-tied",
        OWN,
        H_cycles=3,
        L_cycles=2,
        L_bp_cycles=[1, 2],
        prefix_lm=False,
        embedding_scale=3.0,
        tie_word_embeddings=True,
    ),
]
