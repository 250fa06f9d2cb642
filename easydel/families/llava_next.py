"""LLaVA-NeXT (Liu et al. 2024, https://llava-vl.github.io/blog/2024-01-30-llava-next): its language model."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.families.llava import IMAGES
from easydel.wrapper import text_config


@wrapper("llava_next", ignored=(*IMAGES, r"(model\.)?image_newline"))
def llava_next(c: HFConfig) -> dict[str, Any]:
    return text_config(c, "llama", tied=False)
