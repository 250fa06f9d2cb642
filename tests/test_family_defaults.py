"""What a family assumes of a config that lacks a key is what transformers assumes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from easydel.config import NEUTRAL, HFConfig
from easydel.families import Family, all_families

# Keys without which transformers' own defaults are no model that runs.
NEEDED = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6},
    "glm4_moe": {"head_dim": 128},
}
FAMILIES = pytest.mark.parametrize("family", all_families().values(), ids=all_families())


def transformers_default(model_type: str) -> Any:
    return transformers.CONFIG_MAPPING[model_type](**NEEDED.get(model_type, {}))


def values_of(config: Any, key: str) -> list[Any]:
    """What transformers has for `key`: as its class declares it, as it computes it, or among rotary settings."""
    rope = getattr(config, "rope_parameters", None) or {}
    places = (vars(type(config)).get(key), getattr(config, key, None), rope.get(key))
    return [value for value in places if value is not None]


@FAMILIES
def test_defaults_equal_those_of_transformers(family: Family):
    theirs = transformers_default(family.model_type)
    config = family.configured(HFConfig({**family.defaults, **NEEDED.get(family.model_type, {})}))
    family.build(config)
    unused = config.unread()  # tables are shared, so some have keys of a relative
    used = {key: value for key, value in family.defaults.items() if key not in unused and value not in NEUTRAL}
    assert not {key: value for key, value in used.items() if value not in values_of(theirs, key)}


@FAMILIES
def test_config_without_any_key_is_that_of_transformers(family: Family):
    empty, _ = family.record(family.configured(HFConfig(NEEDED.get(family.model_type, {}))))
    written = json.loads(transformers_default(family.model_type).to_json_string(use_diff=False))
    full, _ = family.record(family.configured(HFConfig(written)))
    assert empty == full
