"""Tiny models of hyperclovax."""

from __future__ import annotations

from cases import case
from cases.granite import MULTIPLIERS

CASES = [
    case("hyperclovax", "multiplied", **MULTIPLIERS, head_dim=10),
    case(
        "hyperclovax",
        "no-post-norm-biased-tied",
        use_post_norm=False,
        attention_bias=True,
        mlp_bias=True,
        logits_scaling=0.3,
        tie_word_embeddings=True,
    ),
]
