"""The values that a config's keys can have, by the name of the key and by the type of its default."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard

MAX_SIZE = 1 << 31
SIZE = re.compile(
    r"(num|n)_[a-z_]*(layers?|heads?|experts?|experts_per_tok|embd|inner)|[a-z_]*(hidden|vocab|intermediate|state)_size|[a-z_]*head_dim|d_model|n_layer|n_head"
)
# Sizes that must be at least 1.
POSITIVE = re.compile(
    r"(num|n)_[a-z_]*attention_heads|num_heads|n_heads?|hidden_size|vocab_size|d_model|n_embd|n_layers?|num_(hidden_)?layers"
)
SWITCH = re.compile(r"is_encoder_decoder|tie_word_embeddings")
NUMBER = re.compile(r"[a-z_]*(eps|epsilon|theta|softcapping|multiplier|max_position_embeddings|n_positions|base_freq)")
# A number for all layers, or a list with one for each.
BY_LAYER: dict[str, Callable[[Any], bool]] = {
    "moe_topk": lambda one: is_whole(one),
    "layer_rope_theta": lambda one: is_number(one) and one >= 0,
}
LAYERS = re.compile(r"(num|n)_(hidden_|encoder_|decoder_)?layers?|(encoder|decoder)_layers")


def expectation(key: str, value: Any, default: Any) -> str | None:
    """Returns a description of the values of `key` if `value` is not one, by its name and the type of the default."""
    if SIZE.fullmatch(key) or LAYERS.fullmatch(key):
        least = 1 if POSITIVE.fullmatch(key) or LAYERS.fullmatch(key) else 0
        fits = is_whole(value) and least <= value < MAX_SIZE
        return None if fits else f"a whole number from {least} to 2**31"
    if (kind := BY_LAYER.get(key)) and isinstance(value, list) and all(map(kind, value)):
        return None
    if SWITCH.fullmatch(key):
        return None if isinstance(value, bool) else "true or false"
    if NUMBER.fullmatch(key) or type(default) in (int, float):
        fits = is_number(value) and not (value < 0 and NUMBER.fullmatch(key))
        if is_number(value) and key.endswith(("max_position_embeddings", "n_positions")) and value >= MAX_SIZE:
            return "a number below 2**31"
        return None if fits else f"a {'non-negative ' if NUMBER.fullmatch(key) else ''}number"
    if default == "auto":  # or a number
        return None
    if default is not None and not isinstance(value, type(default)):
        return {bool: "true or false", str: "a string", list: "a list", dict: "an object"}.get(type(default))
    return None


def shown(value: Any) -> str:
    """Returns `value` for a message, cut to fit into a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def is_number(value: Any) -> TypeGuard[int | float]:
    """True for a finite int or float; JSON as Python reads it also has NaN and Infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38 and math.isfinite(value)


def is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
