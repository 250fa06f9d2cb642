"""Tiny models of every family: unequal sizes, so that swapped dimensions cannot cancel."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A transformers config (`model_type` with `config`) whose random model is the reference.

    `name` is the test's id, `length` that of its sequences. `tp` is a tensor-parallel size that its heads can be split
    over. `seq2seq` compares an encoder-decoder. With `growing_rope`, frequencies depend on how much was seen, so a
    cached decode differs from the full forward, in transformers too: it is compared with theirs.
    With `slot_positions`, padding changes transformers' results (it counts in positions, or Mamba's input bias takes it
    into the convolution): left-padded rows are compared without padding.
    `not_exported` are tensors that transformers writes although they can be computed (buffers, copies of tied ones).
    `attention` is the implementation of attention that the reference uses.
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


def all_cases() -> list[Case]:
    """The `CASES` of every module of this package."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [case for module in modules for case in module.CASES]
