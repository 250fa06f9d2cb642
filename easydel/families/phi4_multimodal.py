"""Phi-4-multimodal's language model (Microsoft 2025, arXiv:2503.01743): Phi-3, with its keys among the outer ones."""

from typing import Any

from easydel.config import HFConfig
from easydel.families.qwen2_vl import NOT_TEXT, plain
from easydel.keys import Keys
from easydel.multimodal import completed
from easydel.weights.sources import TensorSource

OWN = ("audio_config", *NOT_TEXT)
AUTHORS = ("audio_processor", "embd_layer", "img_processor", "speech_lora", "vision_lora")
NEUTRAL = {"full_attn_mod": 1, "interpolate_factor": 1}  # values without effect in the authors' code
# adapters for images and speech, which text goes without
EXTENSIONS = (r"model\.embed_tokens_extend\..*", r".*\.lora_[AB]\.(vision|speech)\.weight")


def phi4_text(c: HFConfig) -> dict[str, Any]:
    """Returns the config of a Phi-3, from transformers' form or that of the authors' code (phi4mm)."""
    outer = {key: value for key, value in c.to_dict().items() if (key, value) not in NEUTRAL.items()}
    flat = {key: value for key, value in outer.items() if key not in (*OWN, *AUTHORS)}
    return completed(c, plain(c, flat, "phi3", Keys.of("phi4_multimodal")))


def adapted(c: HFConfig, tensors: dict[str, TensorSource]) -> dict[str, TensorSource]:
    """Returns the tensors by their names without adapters."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
