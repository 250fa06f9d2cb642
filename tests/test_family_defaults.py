"""Every key of a config is read or refused, and a missing key has the value that transformers assumes."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import transformers
from cases import Case, all_cases

from easydel.config import HFConfig
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.families import Family, all_families, find_family
from easydel.keys import FILE, Keys, is_inert

# Keys without which transformers' own defaults are no model that runs.
NEEDED = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6},
    "glm4_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "xmod": {"default_language": "en_XX"},
}
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64}
NEEDED["qwen4_exp_text"] = INDEXER | {"indexer_compress_ratio": 8, "ple_layer_ids": [1], "eos_token_id": 2}
FAMILIES = pytest.mark.parametrize("family", all_families(), ids=lambda family: family.name)


def test_keys_are_those_of_the_pinned_transformers(tmp_path: Path):
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "make_keys.py"))
    assert script["text"]() == FILE.read_text(), "run `make keys`"


@FAMILIES
def test_config_without_any_key_is_that_of_transformers(family: Family):
    needed = NEEDED.get(family.model_type, {})
    theirs = transformers.CONFIG_MAPPING[family.model_type](**needed)
    empty, _ = family.record(family.configured(HFConfig(needed)))
    full, _ = family.record(family.configured(HFConfig(json.loads(theirs.to_json_string(use_diff=False)))))
    assert empty == full


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_config_of_a_case_is_the_same_as_transformers_writes_it(case: Case):
    family = find_family(case.model_type, encoder_decoder=case.seq2seq)
    theirs = transformers.CONFIG_MAPPING[case.model_type](**case.config)
    ours, _ = family.record(family.configured(HFConfig(json.loads(json.dumps(case.config)))))
    full, _ = family.record(family.configured(HFConfig(json.loads(theirs.to_json_string(use_diff=False)))))
    assert ours == full


def declared(family: Family) -> dict[str, Any]:
    """Each key of transformers' class, also of configs inside ("attn_config.alibi"), and its default."""
    config_class = transformers.CONFIG_MAPPING[family.model_type]
    fields = {found.name: found.default for found in dataclasses.fields(config_class)}
    inner = {
        f"{key}.{name}": value
        for key, model_type in family.declared.nested.items()
        for name, value in Keys.of(model_type).defaults.items()
    }
    return {key: value for key, value in (fields | inner).items() if key not in family.declared.nested}


def other_than(value: Any) -> Any:
    """Something that `value` is not, of its type where that has others."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {str: "other", list: [1], dict: {"other": 1}}.get(type(value), 3)


def with_value(family: Family, key: str, value: Any) -> HFConfig:
    *outer, inner = key.split(".")
    changed = {inner: value}
    for name in reversed(outer):
        changed = {name: changed}
    return family.configured(HFConfig(NEEDED.get(family.model_type, {}) | changed))


def was_read(config: HFConfig, key: str) -> bool:
    outer, _, inner = key.rpartition(".")
    config = config._nested[outer] if outer else config
    return bool(config._read & set(config.declared.spellings(inner)))


@FAMILIES
def test_each_key_of_transformers_class_is_read_or_refused_or_listed_with_a_reason(family: Family):
    silent = []
    for key, default in declared(family).items():
        config = with_value(family, key, other_than(default))
        try:
            family.record(config)
        except (ConfigError, UnsupportedModelError):
            continue
        if not (was_read(config, key) or is_inert(key) or key in family.inert):
            silent.append(key)
    assert silent == []


WITH_INERT = [family for family in all_families() if family.inert]


@pytest.mark.parametrize("family", WITH_INERT, ids=lambda family: family.name)
def test_nothing_is_listed_as_inert_that_would_not_be_refused(family: Family):
    strict = dataclasses.replace(family, inert={})
    for key in family.inert:
        default = declared(family).get(key)
        with pytest.raises(UnsupportedModelError, match=key):
            strict.record(with_value(strict, key, other_than(default)))


def test_only_takes_the_values_that_there_is_code_for(tmp_path: Path):
    config = HFConfig({"scoring_func": "softmax", "alibi": 1}, file=tmp_path / "config.json")
    assert config.only("scoring_func", "sigmoid", "softmax") == "softmax"
    assert config.only("topk_method", "greedy", "noaux_tc") == "greedy"
    assert config.only("topk_method", "greedy", "noaux_tc", default="noaux_tc") == "noaux_tc"
    with pytest.raises(UnsupportedModelError, match=r"scoring_func is 'softmax', known: 'sigmoid'") as refusal:
        config.only("scoring_func", "sigmoid")
    assert refusal.value.file == str(tmp_path / "config.json")
    with pytest.raises(UnsupportedModelError, match="alibi is 1, known: True"):
        config.only("alibi", True)
