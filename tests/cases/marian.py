"""Tiny models of marian: encoder-decoders, and decoders alone."""

from __future__ import annotations

from cases.bart import alone, whole

SPECIAL = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
CASES = [
    whole("marian", "shared", **SPECIAL, scale_embedding=True, activation_function="swish"),
    whole("marian", "two-vocabularies", **SPECIAL, share_encoder_decoder_embeddings=False, decoder_vocab_size=103),
    alone("marian", "plain", computed=True, **SPECIAL),
]
