"""Fuyu's language model (Adept 2023, adept.ai/blog/fuyu-8b): a Persimmon. Files may have its keys outside."""

from typing import Any

from easydel.config import HFConfig
from easydel.families.qwen2_vl import NOT_TEXT, plain
from easydel.multimodal import completed, nested

IMAGES = (r"(model\.)?vision_embed_tokens\..*",)
OWN = ("image_size", "patch_size", "num_channels", "text_model_type", *NOT_TEXT)


def fuyu_text(c: HFConfig) -> dict[str, Any]:
    flat = {key: value for key, value in c.to_dict().items() if key not in OWN}
    text = flat if c.get("text_config") is None else nested(c)
    return completed(c, plain(c, text, "persimmon"), tied=False)
