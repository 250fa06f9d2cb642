"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191): its language model, a Qwen2.

Its rotary positions have a part each for time, height and width; in text all three are equal, as plain positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.wrapper import completed, nested

IMAGES = (r"(model\.)?visual\..*",)
DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_window_layers": 80,
}
NOT_TEXT = ("text_config", "vision_config", "model_type", "architectures")
SECTIONS = ("mrope_section", "mrope_interleaved")


def plain(text: Mapping[str, Any], model_type: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the `model_type` that computes the same for text; its own defaults are others than `defaults`."""
    forms = {form: text[form] for form in ("rope_parameters", "rope_scaling") if isinstance(text.get(form), dict)}
    ropes = {
        form: {key: "default" if value == "mrope" else value for key, value in rope.items() if key not in SECTIONS}
        for form, rope in forms.items()
    }
    return {**defaults, **text, **ropes, "model_type": model_type}


@wrapper("qwen2_vl", ignored=IMAGES)
def qwen2_vl(c: HFConfig) -> dict[str, Any]:
    """Files on the Hub have the text's keys among the outer ones."""
    flat = {key: value for key, value in c.to_dict().items() if key not in NOT_TEXT}
    text = flat if c.get("text_config") is None else nested(c)
    return completed(c, plain(text, "qwen2", DEFAULTS))
