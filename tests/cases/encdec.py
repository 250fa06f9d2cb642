"""Encoder-decoders, and BART's decoder alone."""

from __future__ import annotations

from typing import Any

from cases import Case

# Distances up to 12 then fill the exact and the logarithmic buckets, and the one that is shared by all beyond.
BUCKETS = {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 9}
# More encoder than decoder layers: transformers makes room in its cache for as many as the encoder has.
T5 = {
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
BART = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 72,
    "max_position_embeddings": 32,
}


def t5(name: str, **config: Any) -> Case:
    return Case(f"t5-{name}", "t5", T5 | config, seq2seq=True)


def bart(name: str, **config: Any) -> Case:
    return Case(f"bart-{name}", "bart", BART | config, seq2seq=True)


# transformers keeps a place for cross-attention in a decoder alone, which has nothing to attend to.
UNUSED = tuple(
    f"model.decoder.layers.{layer}.encoder_attn{module}.{leaf}"
    for layer in range(BART["decoder_layers"])
    for module in (".q_proj", ".k_proj", ".v_proj", ".out_proj", "_layer_norm")
    for leaf in ("weight", "bias")
)


def bart_decoder(name: str, **config: Any) -> Case:
    return Case(f"bart-decoder-{name}", "bart", BART | config, slot_positions=True, not_exported=UNUSED)


CASES = [
    t5("tied"),
    t5("untied-gated", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    bart("tied"),
    bart("untied-scaled", scale_embedding=True, tie_word_embeddings=False, activation_function="relu"),
    bart_decoder("tied", scale_embedding=True),
    bart_decoder("untied", tie_word_embeddings=False, activation_function="gelu_new"),
]
