"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671, arXiv:2412.15115): Llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Sequence

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.families import family
from easydel.families import llama as base

FULL, SLIDING = "full_attention", "sliding_attention"
SIZES = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
DEFAULTS = base.DEFAULTS | SIZES | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}


def layer_types(c: HFConfig, default: Sequence[str], known: Sequence[str] = (FULL, SLIDING)) -> Sequence[str]:
    """What kind each layer is: `layer_types` where the config has them, one of `known` for each layer."""
    return checked_types(c, "layer_types", c.get("layer_types") or default, known)


def checked_types(c: HFConfig, key: str, kinds: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    if len(kinds) != c.num_hidden_layers:
        raise ConfigError(f"{len(kinds)} {key} for {c.num_hidden_layers} layers", file=c.file)
    if unknown := sorted(set(kinds) - set(known)):
        raise UnsupportedModelError(f"{key} has {', '.join(unknown)}, known are {', '.join(known)}", file=c.file)
    return kinds


def windows(c: HFConfig) -> list[int | None]:
    """The window of each layer; without `layer_types`, layers from `max_window_layers` on have one."""
    used, size, first = c.use_sliding_window, c.sliding_window, c.max_window_layers
    kinds = layer_types(c, [SLIDING if used and size and i >= first else FULL for i in range(c.num_hidden_layers)])
    return [size if used and kind == SLIDING else None for kind in kinds]


@family("qwen2", base.NAMES, defaults=DEFAULTS)
def qwen2(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [base.attention(c, bias=True, window=window) for window in windows(c)])
