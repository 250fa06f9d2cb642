"""Parameters that transformers keeps in float32, whatever the others are, are never rounded here either."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cases import Case, all_cases
from trained import empty
from transformers.models.auto.configuration_auto import model_type_to_module_name

from easydel.tree import flatten

MODELS = Path(transformers.__file__).parent / "models"
LISTS = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
# More bits of these would change nothing: they are multiplied in the computation dtype here.
MULTIPLIED = {"weights_proj", "indexer.weights_proj", "lm_head", "wo"}
MULTIPLIED |= {f"self_attn.compressor.{name}" for name in ("kv_proj", "gate_proj", "indexer.kv_proj")}
MULTIPLIED |= {f"self_attn.compressor.indexer.{name}" for name in ("gate_proj", "scorer.weights_proj")}
ALWAYS = {"e_score_correction_bias", "sinks"}  # here, in every model


def first_cases() -> list[Case]:
    """A case of each type whose classes have such lists, if these name more than buffers."""
    firsts = {case.model_type: case for case in reversed(all_cases())}
    return [case for _, case in sorted(firsts.items()) if listed(case) - ALWAYS]


def listed(case: Case) -> set[str]:
    """What lists in the source of the model's classes name, and is not multiplied."""
    found: set[str] = set()
    for file in (MODELS / model_type_to_module_name(case.model_type)).glob("modeling_*.py"):
        for entries in re.findall(rf"(?:{'|'.join(LISTS)}) = \[([^\]]*)\]", file.read_text()):
            found |= set(re.findall(r'"([^"]+)"', entries))
    return found - MULTIPLIED


@pytest.mark.parametrize("case", first_cases(), ids=lambda case: case.model_type)
def test_as_many_numbers_keep_their_bits_as_in_transformers(case: Case):
    auto: Any = transformers.AutoModelForSeq2SeqLM if case.seq2seq else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        theirs = auto.from_config(transformers.AutoConfig.for_model(case.model_type, **case.config))
    names = {name for entry in LISTS for name in getattr(theirs, entry) or ()} - MULTIPLIED | ALWAYS
    kept = re.compile(rf"(?<![^.])(?:{'|'.join(map(re.escape, names))})(?![^.])")
    expected = {name: tensor.numel() for name, tensor in theirs.state_dict().items() if kept.search(name)}
    model = empty(case)
    leaves = flatten(model.params)
    found = {path: leaves[path].size for path in model.exact | model.buffers if leaves[path].dtype.kind == "f"}
    assert sum(found.values()) == sum(expected.values()), (found, expected)
