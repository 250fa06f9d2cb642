"""Tiny models of falcon_h1."""

from __future__ import annotations

from cases import SIZES, case
from cases.bamba import MAMBA

CASES = [
    case(
        "falcon_h1",
        "multiplied-biased",
        SIZES | MAMBA,
        mamba_d_ssm=60,
        mamba_norm_before_gate=False,
        projectors_bias=True,
        attention_bias=True,
        mlp_bias=True,
        lm_head_multiplier=0.7,
        embedding_multiplier=3.0,
        mlp_multipliers=[0.8, 0.6],
        key_multiplier=0.5,
        attention_out_multiplier=0.7,
        attention_in_multiplier=1.2,
        ssm_multipliers=[0.7, 1.2, 0.8, 1.3, 0.6],
        ssm_in_multiplier=1.25,
        ssm_out_multiplier=0.4,
    ),
    case("falcon_h1", "normed-tied", SIZES | MAMBA, mamba_d_ssm=None, mamba_rms_norm=True, tie_word_embeddings=True),
    case(
        "falcon_h1",
        "normed-after-the-gate",
        SIZES | MAMBA,
        mamba_d_ssm=72,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        mamba_conv_bias=False,
    ),
]
