"""Qwen's models of images and video: the config of their language model, a Qwen2 or Qwen3.

Its rotary positions have a part each for time, height and width; in text all three are equal, as plain positions.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from easydel.config import HFConfig
from easydel.keys import Keys
from easydel.multimodal import TextFunction, completed, nested

VISUAL = (r"(model\.)?visual\..*", r"vision_tower\..*")  # the second: mlx-vlm's name for it
NOT_TEXT = ("text_config", "vision_config", "model_type", "architectures")
SECTIONS = ("mrope_section", "mrope_interleaved")


def qwen2_text(c: HFConfig) -> dict[str, Any]:
    """Returns the text model's config. Files on the Hub have its keys among the outer ones."""
    flat = {key: value for key, value in c.to_dict().items() if key not in NOT_TEXT}
    return completed(c, plain(c, flat if c.get("text_config") is None else nested(c), "qwen2"))


def text_as(
    model_type: str, *, tied: bool | None = False, defaults: Mapping[str, Any] = MappingProxyType({})
) -> TextFunction:
    """Returns a function from a config to that of its language model, which computes what a `model_type` does.

    `tied` is as in `completed`; `defaults` come before those of the type.
    """
    return lambda c: completed(c, plain(c, {**defaults, **nested(c)}, model_type), tied=tied)


def plain(c: HFConfig, text: Mapping[str, Any], model_type: str, declared: Keys | None = None) -> dict[str, Any]:
    """Returns a config of `model_type` that computes the same for text; missing keys get this type's own defaults.

    `declared` are the keys of the type's class, by default those of its text_config.
    """
    declared = declared or Keys.of(c.model_type).inside("text_config")
    theirs = {key: value for key, value in {**declared.rope_rest, **declared.defaults}.items() if value is not None}
    forms = {form: text[form] for form in ("rope_parameters", "rope_scaling") if isinstance(text.get(form), dict)}
    ropes = {
        form: {key: "default" if value == "mrope" else value for key, value in rope.items() if key not in SECTIONS}
        for form, rope in forms.items()
    }
    return {**theirs, **text, **ropes, "model_type": model_type}
