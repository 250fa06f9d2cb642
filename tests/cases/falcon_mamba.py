"""Tiny models of falcon_mamba."""

from __future__ import annotations

from cases.mamba import recurrent

CASES = [
    recurrent("falcon_mamba", "plain", mixer_rms_eps=1e-3),
    recurrent("falcon_mamba", "biased-untied", use_bias=True, tie_word_embeddings=False, residual_in_fp32=False),
]
