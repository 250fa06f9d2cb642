"""Qwen3-VL (Bai et al. 2025, arXiv:2511.21631): its language model, a Qwen3."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.families.qwen2_vl import IMAGES, plain
from easydel.wrapper import completed, nested

DEFAULTS = {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32}
DEFAULTS |= {"max_position_embeddings": 128000, "rope_theta": 5e5, "num_key_value_heads": 32}


@wrapper("qwen3_vl", ignored=IMAGES)
def qwen3_vl(c: HFConfig) -> dict[str, Any]:
    return completed(c, plain(nested(c), "qwen3", DEFAULTS), tied=False)
