"""Llama 3.2 Vision's language model (Llama Team 2024, arXiv:2407.21783): without an image, it is Llama 3.1.

Between Llama's layers stand some that attend to an image. A text has none, and passes them by.
"""

from __future__ import annotations

import re
from typing import Any

from easydel.config import HFConfig
from easydel.errors import ConfigError
from easydel.expected import is_whole
from easydel.families.qwen2_vl import plain
from easydel.multimodal import TIED, completed, nested
from easydel.weights.sources import FirstRows, TensorSource

EMBEDDING = "model.embed_tokens.weight"
SEEING = (3, 8, 13, 18, 23, 28, 33, 38)  # unless the config says so


def mllama_text(c: HFConfig) -> dict[str, Any]:
    """Returns a Llama's config: that of the layers that read text."""
    text = {key: value for key, value in plain(c, nested(c), "llama").items() if key != "cross_attention_layers"}
    untied = {TIED: False}  # whatever the configs say: there are fewer logits than token vectors
    return completed(c, text | {"num_hidden_layers": len(text_layers(c))}) | untied


def text_layers(c: HFConfig) -> list[int]:
    """Returns the numbers of the layers that read text."""
    text = plain(c, nested(c), "llama")
    layers, seeing = text["num_hidden_layers"], text.get("cross_attention_layers", list(SEEING))
    if not is_whole(layers) or not isinstance(seeing, list):
        raise ConfigError("text_config states no numbers of layers", file=c.file)
    return [layer for layer in range(layers) if layer not in seeing]


def mllama_tensors(c: HFConfig, tensors: dict[str, TensorSource]) -> dict[str, TensorSource]:
    """Returns Llama's tensors: layers are counted anew, and only tokens that have logits have vectors."""
    numbers = {str(layer): number for number, layer in enumerate(text_layers(c))}
    found = {}
    for name, tensor in tensors.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer is None:
            found[name] = tensor
        elif layer[1] in numbers:
            found[f"model.layers.{numbers[layer[1]]}.{name[layer.end() :]}"] = tensor
    if EMBEDDING in found:
        found[EMBEDDING] = FirstRows(found[EMBEDDING], mllama_text(c)["vocab_size"])
    return found
