"""Tiny models of minimax."""

from __future__ import annotations

from dataclasses import replace

from cases import EXPERTS, Case, case

FACTORS = {"full_attn_alpha_factor": 1.3, "full_attn_beta_factor": 0.7, "linear_attn_alpha_factor": 0.8}
FACTORS |= {"linear_attn_beta_factor": 1.2, "mlp_alpha_factor": 1.1, "mlp_beta_factor": 0.6}
DECAYS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def hybrid(name: str, linear: tuple[int, ...], **config: object) -> Case:
    """A model with lightning attention in the layers `linear`, whose decays need not be written."""
    decays = tuple(f"model.layers.{layer}.self_attn.{decay}" for layer in linear for decay in DECAYS)
    return replace(case("minimax", name, EXPERTS, num_local_experts=5, **config), not_exported=decays)


CASES = [
    hybrid("plain", (1,)),
    hybrid(
        "scaled-residuals-sliding-own-head-dim",
        (0, 2),
        **FACTORS,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        sliding_window=5,
        head_dim=10,
        block_size=4,
        tie_word_embeddings=True,
    ),
]
