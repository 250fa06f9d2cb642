"""Mistral Small 3.1 and later, Ministral 3 (Mistral AI 2025): the language model of these models with images."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.families.llava import IMAGES
from easydel.wrapper import text_config


@wrapper("mistral3", ignored=IMAGES)
def mistral3(c: HFConfig) -> dict[str, Any]:
    return text_config(c, "mistral", tied=True)
