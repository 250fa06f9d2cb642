"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923): its language model, found as that of Qwen2-VL."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import qwen2_vl, wrapper


@wrapper("qwen2_5_vl", ignored=qwen2_vl.IMAGES)
def qwen2_5_vl(c: HFConfig) -> dict[str, Any]:
    return qwen2_vl.qwen2_vl(c)
