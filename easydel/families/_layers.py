"""Layers of several kinds: the kind of each layer, its window, and its rotary settings."""

from collections.abc import Sequence
from typing import Any, TypeVar

from easydel.expected import shown
from easydel.families._parts import ConfigError, HandOn, HFConfig, TakeOver, UnsupportedModelError
from easydel.keys import FULL

K = TypeVar("K")
SLIDING = "sliding_attention"
LINEAR = "linear_attention"


def layer_types(c: HFConfig, default: Sequence[str] | None, known: Sequence[str] = (FULL, SLIDING)) -> Sequence[str]:
    """Returns the kind of each layer, one of `known`: from `layer_types` if the config has it."""
    return checked_types(c, "layer_types", c.get("layer_types") or default, known)


def checked_types(c: HFConfig, key: str, kinds: Sequence[K] | None, known: Sequence[K]) -> Sequence[K]:
    """Returns `kinds`, the value of `key`, checked to be one of `known` for each layer."""
    if not isinstance(kinds, list | tuple):
        raise ConfigError(f"{key} is {shown(kinds)}, expected a list with the kind of each layer", file=c.file)
    if len(kinds) != c.num_hidden_layers:
        raise ConfigError(f"{len(kinds)} {key} for {c.num_hidden_layers} layers", file=c.file)
    if unknown := sorted({str(kind) for kind in kinds if kind not in known}):
        names = ", ".join(map(str, known))
        raise UnsupportedModelError(f"{key} has {', '.join(unknown)}, known are {names}", file=c.file)
    return kinds


def alternating(c: HFConfig, period: int) -> Sequence[str]:
    """Returns the kind of each layer; by default every `period`-th layer sees everything."""
    return layer_types(c, [SLIDING if (i + 1) % period else FULL for i in range(c.num_hidden_layers)])


def windows(c: HFConfig, kinds: Sequence[str]) -> list[int | None]:
    """Returns the window of each layer: `sliding_window` where its kind is sliding."""
    size = c.sliding_window
    return [size if kind == SLIDING else None for kind in kinds]


def upper_windows(c: HFConfig) -> list[int | None]:
    """Returns the window of each layer as Qwen has it: by default, layers from `max_window_layers` on have one."""
    used, size, first = c.use_sliding_window, c.sliding_window, c.max_window_layers
    kinds = layer_types(c, [SLIDING if used and size and i >= first else FULL for i in range(c.num_hidden_layers)])
    return [size if used and kind == SLIDING else None for kind in kinds]


def ropes(c: HFConfig, local: str) -> dict[str, dict[str, Any]]:
    """Returns the rotary settings of each kind of layer.

    Before `rope_parameters`, `rope_scaling` applied to full layers alone, and `local` held the theta of sliding ones.
    """
    nested = SLIDING in c.get("rope_parameters", {})
    theta = c.get(local, c.declared.rope_rest[SLIDING]["rope_theta"])
    return {FULL: c.rope(FULL), SLIDING: c.rope(SLIDING) if nested else {"rope_type": "default", "rope_theta": theta}}


def shared_keys(c: HFConfig, kinds: Sequence[str]) -> list[HandOn | TakeOver | None]:
    """What each layer does with keys and values: the last `num_kv_shared_layers` have none of their own.

    They take over those of the last layer before them of their kind, which hands them on.
    """
    first = len(kinds) - c.num_kv_shared_layers
    own, taken = list(kinds[:first]), set(kinds[first:])
    if missing := sorted(taken - set(own)):
        problem = f"num_kv_shared_layers={c.num_kv_shared_layers}: no layer before them is {', '.join(missing)}"
        raise ConfigError(problem, file=c.file)
    givers = {first - 1 - own[::-1].index(kind) for kind in taken}
    keys: list[HandOn | TakeOver | None] = [HandOn(kind) if i in givers else None for i, kind in enumerate(own)]
    return [*keys, *(TakeOver(kind) for kind in kinds[first:])]
