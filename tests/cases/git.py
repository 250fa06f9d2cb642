"""Tiny models of git."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import Case
from cases.bert import causal

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
}
VISUAL, INNER = "git.image_encoder.vision_model", "git.image_encoder.vision_model.encoder.layers.0"
LINEARS = [f"{INNER}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
LINEARS += [f"{INNER}.{part}" for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")]
LINEARS += [f"{VISUAL}.pre_layrnorm", f"{VISUAL}.post_layernorm"]
LINEARS += [f"git.visual_projection.visual_projection.{part}" for part in (0, 1)]
TABLES = [f"{VISUAL}.embeddings.{part}" for part in ("class_embedding", "patch_embedding.weight")]
TABLES += [f"{VISUAL}.embeddings.position_embedding.weight"]
TOWER = (*TABLES, *(f"{linear}.{leaf}" for linear in LINEARS for leaf in ("weight", "bias")))


def blind(name: str, **config: Any) -> Case:
    """A model in whose files there is a tower for images."""
    case = causal("git", name, vision_config=VISION, **config)
    kept = {key: value for key, value in case.config.items() if key not in ("is_decoder", "type_vocab_size")}
    return replace(case, config=kept, not_exported=TOWER)


CASES = [blind("untied"), blind("tied", tie_word_embeddings=True, hidden_act="relu")]
