"""Rotary settings in one form, from either form of a config.

Until 2025 `rope_theta` and `rope_scaling` were at top level; since then all settings are in one `rope_parameters`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from easydel.errors import ArgumentError
from easydel.expected import is_number, shown
from easydel.keys import FULL, Keys

Settings = dict[str, Any]
# The keys that `HFConfig.rope` reads: one of the forms, and keys at top level beside it.
FORMS = ("rope_parameters", "rope_scaling")
ORIGINAL = "original_max_position_embeddings"
TOP = ("rope_theta", "partial_rotary_factor", ORIGINAL, "max_position_embeddings")
# Settings at top level that are ignored where `rope_parameters` states them.
FALLBACKS = ("rope_theta", "partial_rotary_factor", "rope_local_base_freq")
LISTS = ("short_factor", "long_factor")
# Settings that some code reads; any other is reported as ignored.
OTHERS = ("rope_type", "type", "truncate", "mrope_section", "mrope_interleaved", *LISTS)
OF_FAMILIES = ("alpha", "llama_4_scaling_beta", "short_mscale", "long_mscale")
STRETCHED = ("llama3", "yarn", "longrope")  # from an original length
# Settings that have to be positive numbers, whichever type uses them.
NUMBERS = re.compile(
    r"rope_theta|factor|(low|high)_freq_factor|attention_factor|partial_rotary_factor|beta_(fast|slow)"
    r"|original_max_position_embeddings|mscale(_all_dim)?"
)


def merged(stated: Mapping[str, Any], top: Mapping[str, Any], declared: Keys, layer_type: str | None) -> Settings:
    """Returns a config's settings, in either form and at top level, as one flat dict with its class's defaults."""
    kind = layer_type or FULL
    rest = _of_layer(declared.rope_rest, kind)
    above = {key: top[key] for key in ("rope_theta", "partial_rotary_factor") if top[key] is not None}
    if stated:
        own = {key: value for key, value in _of_layer(stated, kind).items() if value is not None or key not in TOP}
        settings = {**rest, **above, **own}
    else:
        settings = {**_of_layer(declared.rope, kind), **above}
    settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    settings.pop("type", None)
    if settings["rope_type"] == "su":  # its name in the first Phi-3 files
        settings["rope_type"] = "longrope"
    settings.setdefault("rope_theta", 10000.0)
    if settings["rope_type"] in STRETCHED:
        lengths = (top[ORIGINAL], settings.get(ORIGINAL), top["max_position_embeddings"])
        settings[ORIGINAL] = next((length for length in lengths if length is not None), None)
    settings["max_position_embeddings"] = top["max_position_embeddings"]
    return settings


def problems(settings: Settings) -> list[str]:
    """Returns the errors in `merged` settings."""
    found = [problem for key, value in settings.items() if (problem := _problem(key, value))]
    if settings.get(ORIGINAL, 0) is None:
        found.append(f"{settings['rope_type']} needs max_position_embeddings, which is missing")
    low, high = settings.get("low_freq_factor"), settings.get("high_freq_factor")
    if not found and low is not None and high is not None and low > high:
        found.append(f"low_freq_factor is {low}, expected at most high_freq_factor, {high}")
    return found


def is_setting(key: str) -> bool:
    """True if `key` of rotary settings is one that a rope, or some family, computes with."""
    return key in (*OTHERS, *OF_FAMILIES, "max_position_embeddings") or NUMBERS.fullmatch(key) is not None


def with_overrides(values: Settings, declared: Keys, overrides: Mapping[str, Any]) -> Settings:
    """Returns `values` with overridden rotary settings also replaced in `rope_parameters` or `rope_scaling`."""
    form = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    settings = values.get(form)
    spellings = [(key, name) for key in FALLBACKS for name in declared.spellings(key)]
    given = {key: overrides[name] for key, name in spellings if overrides.get(name) is not None}
    if not given or not isinstance(settings, Mapping):
        return values
    asked = ", ".join(f"{key}={shown(value)}" for key, value in given.items())
    if is_by_layer(settings):
        problem = f"{asked} does not say for which layers, and {form} has settings for {' and '.join(settings)}"
        raise ArgumentError(problem, hint=f"pass {form}={{...}} with those of each")
    stated = {key: value for key, value in given.items() if key in settings}
    if form in overrides and any(settings[key] not in (None, value) for key, value in stated.items()):
        raise ArgumentError(f"{asked} contradicts {form}={shown(settings)}", hint=f"pass {form}={{...}} alone")
    return values | {form: {**settings, **stated}}


def is_by_layer(settings: Mapping[str, Any]) -> bool:
    """True if these are rotary settings for each type of layer, not one set for all."""
    return bool(settings) and all(isinstance(entry, dict) or entry is None for entry in settings.values())


def _of_layer(settings: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return settings.get(kind) or {} if is_by_layer(settings) else settings


def _problem(key: str, value: Any) -> str | None:
    if value is None:
        return None
    if key == "rope_type" and not isinstance(value, str):
        return f"rope_type is {shown(value)}, expected a string"
    if key.startswith("mscale") and value == 0:  # 0 means that there is none
        return None
    if NUMBERS.fullmatch(key) and not (is_number(value) and value > 0):
        return f"{key} is {shown(value)}, expected a positive number"
    if key in LISTS and not (isinstance(value, list) and all(is_number(item) and item > 0 for item in value)):
        return f"{key} is {shown(value)}, expected a list of positive numbers"
    return None
