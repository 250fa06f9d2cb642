"""Rotary settings of a GGUF file as Hugging Face's: from its metadata, and from the tables that converters store.

Llama 3's scaling (arXiv:2407.21783) is in no metadata, only in the tensor `rope_freqs.weight`: the factors by which
frequencies are slowed. Phi-3's (LongRoPE, arXiv:2402.13753) are two such tensors. Both are converted back to the
settings they came from; Llama 3's are accepted only if they give the same table again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import UnsupportedModelError

LLAMA3_TABLE = "rope_freqs.weight"
LONG_TABLE, SHORT_TABLE = "rope_factors_long.weight", "rope_factors_short.weight"
TABLES = {LLAMA3_TABLE: ("llama3", "proportional"), LONG_TABLE: ("longrope",), SHORT_TABLE: ("longrope",)}
_UNROTATED = 1e30  # the factor of channels that are not rotated, in files of Gemma 4
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LLAMA4 = {**_LLAMA3, "high_freq_factor": 1.0}  # Scout's: no frequency is blended
_CLOSE = 1e-4  # tables are float32, and were computed in it


def rope_scaling(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    theta: float,
    dim: int,
    longest: int,
    file: Path | None,
) -> dict[str, Any] | None:
    """Returns a config's `rope_scaling`, or None. `settings` are metadata keys below "<architecture>.rope.scaling"."""
    kind = settings.get("type", "linear")  # llama.cpp's default
    factor = settings.get("factor")
    stretched = kind == "linear" and factor not in (None, 0, 1)
    unchanged = settings.get("attn_factor", 1) == 1 and not settings.get("yarn_log_multiplier")
    if LLAMA3_TABLE in tensors and not stretched:
        return _llama3(_table(tensors[LLAMA3_TABLE], dim), theta, dim, file)
    if LONG_TABLE in tensors and SHORT_TABLE in tensors and not stretched:
        return _longrope(settings, _table(tensors[LONG_TABLE], dim), _table(tensors[SHORT_TABLE], dim), longest)
    if stretched and unchanged and not TABLES.keys() & tensors.keys():
        return {"rope_type": "linear", "factor": factor}
    if kind in ("none", "linear") and unchanged and not stretched:
        return None
    if kind == "yarn" and factor and unchanged:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": settings.get("original_context_length"),
            **{key: settings[f"yarn_{key}"] for key in ("beta_fast", "beta_slow") if f"yarn_{key}" in settings},
        }
    raise UnsupportedModelError(f"its rotary scaling {dict(settings)} is not supported", file=file)


def rotated_share(tensors: Mapping[str, Tensor], dim: int) -> float:
    """Returns the share of a head's `dim` channels that Gemma 4's full layers rotate: those whose factor is 1."""
    if LLAMA3_TABLE not in tensors:
        return 1.0
    table = _table(tensors[LLAMA3_TABLE], dim)
    if not np.all((table == 1) | (table == np.float32(_UNROTATED))):
        found = f"has factors other than 1 and {_UNROTATED:g}"
        raise UnsupportedModelError(found, file=tensors[LLAMA3_TABLE].file, tensor=LLAMA3_TABLE)
    return float(np.mean(table == 1))


def llama3_table(scaling: Mapping[str, Any], theta: float, dim: int) -> np.ndarray:
    """Returns the factors by which the dim / 2 frequencies are slowed, as llama.cpp's converter computes them."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / _wavelengths(theta, dim)
    share = np.clip((turns - low) / (high - low), 0, 1) if high != low else (turns >= low).astype(float)
    return 1 / ((1 - share) / factor + share)


def _wavelengths(theta: float, dim: int) -> np.ndarray:
    return 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)


def _table(tensor: Tensor, dim: int) -> np.ndarray:
    values = tensor.read() if tensor.shape == (dim // 2,) and dim > 1 else np.zeros(1)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise UnsupportedModelError(
            f"is not a table of {dim // 2} positive rotary factors", file=tensor.file, tensor=tensor.name
        )
    return values.astype(np.float32)


def _llama3(table: np.ndarray, theta: float, dim: int, file: Path | None) -> dict[str, Any] | None:
    factor = _shortest(float(table.max()))
    if factor == 1:
        return None
    usual = [{"rope_type": "llama3", "factor": factor, **settings} for settings in (_LLAMA3, _LLAMA4)]
    for candidate in [*usual, *_solved(table, factor, theta, dim)]:
        if np.allclose(llama3_table(candidate, theta, dim), table, rtol=_CLOSE, atol=0):
            return candidate
    raise UnsupportedModelError(
        f"its table {LLAMA3_TABLE} of rotary factors fits no Llama 3 scaling",
        file=file,
        hint="use the original weights",
    )


def _solved(table: np.ndarray, factor: float, theta: float, dim: int) -> list[dict[str, Any]]:
    """Returns settings solved from the blended frequencies, if there are two of them; `low_freq_factor` is always 1.

    With s the share that is not slowed, 1 / table = (1 - s) / factor + s, and s is a line over the turns per token.
    """
    share = (1 / table - 1 / factor) / (1 - 1 / factor)
    blended = (share > _CLOSE) & (share < 1 - _CLOSE)
    if blended.sum() < 2:
        return []
    slope, start = np.polyfit(1 / _wavelengths(theta, dim)[blended], share[blended], 1)
    high = 1 - 1 / start
    length = round(slope * (high - 1))
    settings = {"low_freq_factor": 1.0, "high_freq_factor": round(high, 3), "original_max_position_embeddings": length}
    return [{"rope_type": "llama3", "factor": factor, **settings}]


def _longrope(settings: Mapping[str, Any], long: np.ndarray, short: np.ndarray, longest: int) -> dict[str, Any]:
    original = settings.get("original_context_length", longest)
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": [_shortest(factor) for factor in long.tolist()],
        "short_factor": [_shortest(factor) for factor in short.tolist()],
        "original_max_position_embeddings": original,
    }
    usual = math.sqrt(1 + math.log(longest / original) / math.log(original)) if longest > original > 1 else 1.0
    attention = settings.get("attn_factor", usual)
    if not math.isclose(attention, usual, rel_tol=_CLOSE):
        scaling["attention_factor"] = attention
    return scaling


def _shortest(value: float) -> float:
    """Returns the shortest decimal number that rounds to this float32: most likely the config's number."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value
