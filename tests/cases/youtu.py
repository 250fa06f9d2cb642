"""Tiny models of youtu."""

from __future__ import annotations

from cases import YARN, case
from cases.minicpm3 import LATENT

CASES = [
    # whenever transformers 5.23 loads a file, it zeroes the vector of the padding token
    case("youtu", "interleaved", LATENT, v_head_dim=14, pad_token_id=None),
    case(
        "youtu",
        "halves-biased-yarn-untied",
        LATENT,
        v_head_dim=14,
        q_lora_rank=None,
        rope_interleave=False,
        attention_bias=True,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        tie_word_embeddings=False,
    ),
]
