"""Gemma 3 with images (Gemma Team 2025, arXiv:2503.19786): its language model, gemma3_text."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.families.llava import IMAGES
from easydel.wrapper import text_config


@wrapper("gemma3", ignored=IMAGES)
def gemma3(c: HFConfig) -> dict[str, Any]:
    return text_config(c, "gemma3_text", tied=True)
