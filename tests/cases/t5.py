"""Tiny models of t5."""

from __future__ import annotations

from typing import Any

from cases import Case

# Distances up to 12 then fill the exact and the logarithmic buckets, and the one that is shared by all beyond.
BUCKETS = {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 9}
# More encoder than decoder layers: transformers makes room in its cache for as many as the encoder has.
SIZES = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "decoder_start_token_id": 0,
    **BUCKETS,
}


def t5(name: str, **config: Any) -> Case:
    return Case(f"t5-{name}", "t5", SIZES | config, seq2seq=True)


CASES = [t5("tied"), t5("untied-gated", feed_forward_proj="gated-gelu", tie_word_embeddings=False)]
