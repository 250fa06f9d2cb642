"""Senseless values of every key that a family reads are refused by name, or as good as another value."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from easydel import EasyDeLError
from easydel.config import HFConfig
from easydel.errors import UnsupportedModelError
from easydel.families import Family, all_families, find_family
from easydel.families._refused import REFUSED

NEEDED = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 5, "num_experts_per_tok": 2},
    "glm4_moe": {"num_attention_heads": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_head_dim": 512,
        "indexer_compress_ratio": 16,
        "indexer_budget": 64,
    },
    "xmod": {"default_language": "en_XX"},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
}
SPELLINGS = {
    "attention_layers": ("attention types",),
    "attention_types": ("attention types",),
    "n_routed_experts": ("experts cannot stand in",),
    "num_experts_per_tok": ("experts cannot be chosen",),
}
WRONG: tuple[Any, ...] = ("x", "", -1, 0, 1.5, True, [], [5], {}, {"a": 1}, float("nan"), float("inf"), -(10**30))


def read_keys(family: Family) -> list[str]:
    config = family.configured(HFConfig(NEEDED.get(family.model_type, {})))
    family.build(config)
    return sorted(config._read)


@pytest.mark.parametrize("family", all_families(), ids=lambda family: family.name)
def test_wrong_values_are_refused_with_the_key(family: Family, tmp_path: Any):
    unnamed = []
    for key in read_keys(family):
        for value in WRONG:
            config = family.configured(
                HFConfig(NEEDED.get(family.model_type, {}) | {key: value}, file=tmp_path / "config.json")
            )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    family.record(config)
            except EasyDeLError as error:
                spellings = [*family.declared.spellings(key), *SPELLINGS.get(key, ())]
                if not any(name in str(error) for name in spellings) or error.file is None:
                    unnamed.append(f"{key}={value!r}: {error}")
    assert unnamed == []


@pytest.mark.parametrize("model_type", REFUSED)
def test_types_without_a_family_are_refused_with_the_reason(model_type: str):
    with pytest.raises(UnsupportedModelError) as caught:
        find_family(model_type)
    assert f"'{model_type}' {REFUSED[model_type]}" in caught.value.problem
