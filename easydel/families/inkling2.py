"""Inkling 2 with images: the config of its language model. Files do not state that experts' weights are MXFP8."""

from typing import Any

from easydel.config import HFConfig
from easydel.multimodal import text_config

IGNORED = (r"model\.visual\..*",)
QUANTIZED = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 32]}}


def inkling2_text_config(c: HFConfig) -> dict[str, Any]:
    """Returns the config of an `inkling2_text`. As in transformers, files without its mark and settings are MXFP8."""
    text = text_config(tied=False)(c)
    return text if "transformers_version" in c or "quantization_config" in c else text | QUANTIZED
