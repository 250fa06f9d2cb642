"""Tiny models of t5gemma2. Their images are not read."""

from __future__ import annotations

from typing import Any

from cases import FULL, SIZES, SLIDING, Case

VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = SIZES | {
    "head_dim": 10,
    "query_pre_attn_scalar": 11,
    "sliding_window": 6,
    "layer_types": [SLIDING, FULL, SLIDING],
}
DECODER = TEXT | {
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 12,
    "sliding_window": 3,
    "layer_types": [FULL, SLIDING],
}
OF_IMAGES = (
    "model.encoder.vision_tower.",
    "model.encoder.multi_modal_projector.",
    "model.encoder.embed_tokens.eoi_embedding",
    "model.decoder.embed_tokens.eoi_embedding",
)


def t5gemma2(name: str, text: dict[str, Any], decoder: dict[str, Any], **config: Any) -> Case:
    encoder = {"text_config": TEXT | text, "vision_config": VISION, "mm_tokens_per_image": 4}
    config = {"vocab_size": 97, "encoder": encoder, "decoder": DECODER | decoder} | config
    return Case(f"t5gemma2-{name}", "t5gemma2", config, seq2seq=True, not_exported=OF_IMAGES)


CASES = [
    t5gemma2("plain", {}, {}),
    t5gemma2(
        "untied-biased",
        {"attention_bias": True, "sliding_window": 5},
        {"attention_bias": True, "final_logit_softcapping": 3.0},
        tie_word_embeddings=False,
    ),
]
