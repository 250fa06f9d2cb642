"""Tiny models of minicpm3."""

from __future__ import annotations

from cases import SIZES, case

LATENT = SIZES | {
    "num_key_value_heads": 6,
    "q_lora_rank": 18,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
}

CASES = [
    case("minicpm3", "scaled", LATENT, v_head_dim=14, scale_emb=3, scale_depth=0.9, dim_model_base=20),
    case(
        "minicpm3",
        "unscaled-biased-untied",
        LATENT,
        scale_emb=1,
        scale_depth=None,
        dim_model_base=None,
        q_lora_rank=None,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
]
