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


def whole(model_type: str, name: str, *, computed: bool = False, **config: Any) -> Case:
    """An encoder-decoder; with `computed`, transformers writes tables of positions that can be computed."""
    # untied, it keeps token vectors that nothing reads
    unused = () if config.get("tie_word_embeddings", True) else ("model.shared.weight",)
    if computed:
        unused += tuple(f"model.{tower}coder.embed_positions.weight" for tower in ("en", "de"))
    return Case(f"{model_type}-{name}", model_type, SIZES | config, seq2seq=True, not_exported=unused)


def alone(model_type: str, name: str, *, computed: bool = False, **config: Any) -> Case:
    """Its decoder."""
    unused = (*UNUSED, "model.decoder.embed_positions.weight") if computed else UNUSED
    return Case(f"{model_type}-decoder-{name}", model_type, SIZES | config, slot_positions=True, not_exported=unused)


CASES = [
    whole("bart", "tied"),
    whole("bart", "untied-scaled", scale_embedding=True, tie_word_embeddings=False, activation_function="relu"),
    alone("bart", "tied", scale_embedding=True),
    alone("bart", "untied", tie_word_embeddings=False, activation_function="gelu_new"),
]
