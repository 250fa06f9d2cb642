"""LLaVA (Liu et al. 2023, arXiv:2304.08485): its language model, a Llama or another."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.wrapper import text_config

IMAGES = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)


@wrapper("llava", ignored=IMAGES)
def llava(c: HFConfig) -> dict[str, Any]:
    return text_config(c, "llama")
