"""InternVL 3 as transformers has it (Zhu et al. 2025, arXiv:2504.10479): its language model, a Qwen2 or another."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.families.llava import IMAGES
from easydel.wrapper import text_config


@wrapper("internvl", ignored=IMAGES)
def internvl(c: HFConfig) -> dict[str, Any]:
    return text_config(c, "qwen2", tied=True)
