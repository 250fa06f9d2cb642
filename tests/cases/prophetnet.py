"""Tiny models of prophetnet: encoder-decoders, and decoders alone."""

from __future__ import annotations

from typing import Any

from cases import Case

# Distances up to 12 then fill the exact and the logarithmic buckets, and the one that is shared by all beyond.
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_encoder_layers": 3,
    "num_encoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "num_decoder_layers": 2,
    "num_decoder_attention_heads": 4,
    "decoder_ffn_dim": 72,
    "max_position_embeddings": 32,
    "num_buckets": 10,
    "relative_max_distance": 9,
}
# transformers keeps a place for cross-attention in a decoder alone, which has nothing to attend to.
UNUSED = tuple(f"prophetnet.decoder.layers.{layer}.cross_attn" for layer in range(2))
COPY = ("prophetnet.word_embeddings.weight",)  # untied, it keeps token vectors that nothing reads
UNTIED: dict[str, Any] = {"tie_word_embeddings": False, "activation_function": "relu", "ngram": 3}


def prophetnet(name: str, *unused: str, whole: bool = True, **config: Any) -> Case:
    seq2seq: Any = {"seq2seq": True} if whole else {"slot_positions": True}
    return Case(f"prophetnet-{name}", "prophetnet", SIZES | config, not_exported=unused, **seq2seq)


CASES = [
    prophetnet("tied"),
    prophetnet("untied", *COPY, **UNTIED),
    prophetnet("decoder-tied", *UNUSED, whole=False),
    prophetnet("decoder-untied", *UNUSED, *COPY, whole=False, **UNTIED),
]
