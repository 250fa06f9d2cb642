"""Tiny models of bart: encoder-decoders, and decoders alone."""

from __future__ import annotations

from typing import Any

from cases import Case

SIZES = {
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
# transformers keeps a place for cross-attention in a decoder alone, which has nothing to attend to.
UNUSED = tuple(
    f"model.decoder.layers.{layer}.encoder_attn{module}.{leaf}"
    for layer in range(SIZES["decoder_layers"])
    for module in (".q_proj", ".k_proj", ".v_proj", ".out_proj", "_layer_norm")
    for leaf in ("weight", "bias")
)


def bart(name: str, **config: Any) -> Case:
    # untied, it keeps token vectors that nothing reads
    unused = () if config.get("tie_word_embeddings", True) else ("model.shared.weight",)
    return Case(f"bart-{name}", "bart", SIZES | config, seq2seq=True, not_exported=unused)


def bart_decoder(name: str, **config: Any) -> Case:
    return Case(f"bart-decoder-{name}", "bart", SIZES | config, slot_positions=True, not_exported=UNUSED)


CASES = [
    bart("tied"),
    bart("untied-scaled", scale_embedding=True, tie_word_embeddings=False, activation_function="relu"),
    bart_decoder("tied", scale_embedding=True),
    bart_decoder("untied", tie_word_embeddings=False, activation_function="gelu_new"),
]
