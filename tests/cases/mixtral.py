"""Tiny models of mixtral."""

from __future__ import annotations

from cases import EXPERTS, case

CASES = [
    case("mixtral", "plain", EXPERTS, num_local_experts=5),
    case(
        "mixtral",
        "window-tied-wide-heads",
        EXPERTS,
        num_local_experts=4,
        num_experts_per_tok=3,
        sliding_window=5,
        tie_word_embeddings=True,
        head_dim=10,
    ),
]
