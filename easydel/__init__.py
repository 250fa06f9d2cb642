"""Hugging Face language models in JAX: one call downloads, converts, shards and quantizes.

Public names are imported at their first use: `import easydel` alone loads neither JAX nor any model code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easydel.auto import AutoEasyDeLConfig, AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM
    from easydel.errors import (
        ArgumentError,
        CheckpointError,
        ConfigError,
        EasyDeLError,
        HubError,
        ShardingError,
        UnsupportedModelError,
    )
    from easydel.model import BaseNNXModule
    from easydel.sharding import PartitionAxis
    from easydel.tokenizer import load_tokenizer

    __version__: str

__all__ = [
    "ArgumentError",
    "AutoEasyDeLConfig",
    "AutoEasyDeLModelForCausalLM",
    "AutoEasyDeLModelForSeq2SeqLM",
    "BaseNNXModule",
    "CheckpointError",
    "ConfigError",
    "EasyDeLError",
    "HubError",
    "PartitionAxis",
    "ShardingError",
    "UnsupportedModelError",
    "__version__",
    "load_tokenizer",
]

_HOMES = {
    "AutoEasyDeLConfig": "easydel.auto",
    "AutoEasyDeLModelForCausalLM": "easydel.auto",
    "AutoEasyDeLModelForSeq2SeqLM": "easydel.auto",
    "BaseNNXModule": "easydel.model",
    "PartitionAxis": "easydel.sharding",
    "load_tokenizer": "easydel.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'easydel' has no attribute {name!r}")
    if name == "__version__":
        value = import_module("importlib.metadata").version("easydel")
    else:
        value = getattr(import_module(_HOMES.get(name, "easydel.errors")), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
