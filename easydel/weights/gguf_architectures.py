"""The Hugging Face side of each GGUF architecture: the tables, and how a file chooses its row."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from easydel.errors import UnsupportedModelError
from easydel.weights.gguf_architecture import Architecture
from easydel.weights.gguf_dense import DENSE
from easydel.weights.gguf_gemma import GEMMA
from easydel.weights.gguf_hybrids import HYBRIDS
from easydel.weights.gguf_mixtures import MIXTURES
from easydel.weights.gguf_towers import GATE, SECOND_TABLE, TOWERS

ARCHITECTURES: dict[str, Architecture] = DENSE | GEMMA | MIXTURES | HYBRIDS | TOWERS
_SIGMOID = 2  # of `expert_gating_func`
# Kinds of models that share a name: the metadata key (after "<name>.") or tensor that another kind has.
_KINDS: Mapping[str, Mapping[str, str]] = {
    "llama": {"expert_count": "llama with experts"},
    "olmo2": {"attention.sliding_window": "olmo2 with windows"},
    "granitemoe": {"expert_shared_feed_forward_length": "granitemoe with shared experts"},
    "granitehybrid": {"expert_count": "granitehybrid with experts"},
    "mamba": {"ssm.dt_b_c_rms": "mamba with norms"},
    "falcon": {"blk.0.attn_norm_2.weight": "falcon with two norms"},
    "t5": {SECOND_TABLE: "t5 with tables", GATE: "t5 with gates"},
}


def gguf_architectures() -> dict[str, list[str]]:
    """Model type -> the architectures of GGUF files that hold it."""
    found: dict[str, dict[str, None]] = {}
    for name, row in ARCHITECTURES.items():
        found.setdefault(row.model_type, {})[name.split(" with ")[0]] = None
    return {model_type: list(names) for model_type, names in found.items()}


def find_architecture(
    metadata: Mapping[str, Any], tensors: Container[str] = (), file: Any = None
) -> tuple[str, Architecture]:
    """Returns the file's architecture by name. Raises UnsupportedModelError, which lists the known ones."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES or " with " in name:
        known = ", ".join(name for name in ARCHITECTURES if " with " not in name)
        raise UnsupportedModelError(
            f"the GGUF architecture {str(name)[:100]!r} is not supported",
            file=file,
            hint=f"known: {known}; other models load from their safetensors files",
        )
    for key, other in _KINDS.get(name, {}).items():
        if metadata.get(f"{name}.{key}") or key in tensors:
            return name, ARCHITECTURES[other]
    # V3 came before converters wrote how it scores experts: its correction of the scores tells
    if name == "deepseek2" and (
        metadata.get(f"{name}.expert_gating_func") == _SIGMOID or _has_correction(metadata, tensors)
    ):
        return name, ARCHITECTURES["deepseek2 with sigmoids"]
    return name, ARCHITECTURES[name]


def _has_correction(metadata: Mapping[str, Any], tensors: Container[str]) -> bool:
    dense = metadata.get("deepseek2.leading_dense_block_count", 0)
    return f"blk.{dense}.exp_probs_b.bias" in tensors
