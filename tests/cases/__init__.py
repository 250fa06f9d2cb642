"""Tiny models of every family: unequal sizes, so that swapped dimensions cannot cancel."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = SIZES | {"intermediate_size": 40, "num_experts_per_tok": 2}
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Case:
    """A transformers config (`model_type` with `config`) whose random model is the reference.

    `name` is the test's id, `length` that of its sequences. `tp` is a tensor-parallel size that its heads can be split
    over. `seq2seq` compares an encoder-decoder. With `growing_rope`, frequencies depend on how much was seen, so a
    cached decode differs from the full forward, in transformers too: it is compared with theirs.
    With `slot_positions`, padding changes transformers' results (it counts in positions, or Mamba's input bias takes it
    into the convolution): left-padded rows are compared without padding.
    `not_exported` begin the names of tensors that transformers writes although they can be computed (buffers, copies of
    tied ones), or that belong to images.
    `attention` is the implementation of attention that the reference uses. With `own_head` its head is not that of its
    config, which calls every head tied. A model that `looks_ahead` has no cache: all its tokens go in at once.
    """

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    seq2seq: bool = False
    length: int = 13
    tp: int = 2
    growing_rope: bool = False
    slot_positions: bool = False
    not_exported: tuple[str, ...] = ()
    attention: str = "eager"
    own_head: bool = False
    looks_ahead: bool = False


def case(
    model_type: str,
    name: str,
    sizes: Mapping[str, Any] = SIZES,
    *,
    tp: int = 2,
    growing_rope: bool = False,
    attention: str = "eager",
    **config: Any,
) -> Case:
    """A decoder of these sizes, with changes and additions to its config."""
    special = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    whole = {**special, **sizes, **config}
    return Case(f"{model_type}-{name}", model_type, whole, tp=tp, growing_rope=growing_rope, attention=attention)


def all_cases() -> list[Case]:
    """The `CASES` of every module of this package: one for each family, named after its `model_type`."""
    return [case for module in pkgutil.iter_modules(__path__) for case in cases_in(module.name)]


def cases_in(module: str) -> list[Case]:
    return importlib.import_module(f"{__name__}.{module.replace('-', '_')}").CASES
