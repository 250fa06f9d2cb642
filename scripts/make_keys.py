"""Writes easydel/families/keys.json: the declarations of transformers' config classes, for every language model it has.

`make keys` runs this, and a test compares the file with it. easydel/keys.py explains the fields. Keys that are inert in
every class (`keys.INERT`) are left out.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from easydel.keys import FILE, is_inert

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
KINDS = (
    CAUSAL,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
# inert keys, which some model reads anyway
READ = ("pad_token_id", "decoder_start_token_id", "router_jitter_noise", "moe_token_dropout")
RESTS = ("rope_theta", "partial_rotary_factor")
NEEDED = {"gemma4_assistant": {"hidden_size_per_layer_input": 0}}  # without it the class refuses its own defaults
NOT_TEXT = ("vision", "audio", "image", "vq", "projector", "backbone", "qformer", "codec", "depth", "tokenizer")
NOT_TEXT += ("speech",)


def rows(config_class: Any, name: str) -> dict[str, dict[str, Any]]:
    """Returns the row called `name` of that config class, and the rows of its nested configs, which it names."""
    fields = {found.name: found.default for found in dataclasses.fields(config_class)}
    kept = {
        config_class.attribute_map.get(key, key): value
        for key, value in fields.items()
        if key not in config_class.sub_configs and (key in READ or not is_inert(key))
    }
    row: dict[str, Any] = {
        "aliases": config_class.attribute_map,
        "causal_lm": CAUSAL.get(config_class.model_type),
        "defaults": kept,
        "nested": {},
        **ropes(config_class, "rope_parameters" in fields),
    }
    found = {name: row}
    for key, inner in config_class.sub_configs.items():
        if not key.startswith(NOT_TEXT):
            spec = config_class.sub_configs_defaults.get(key)
            row["nested"][key] = f"{name}.{key}" if spec is None else spec.model_type
            found |= rows(inner if spec is None else spec.get_config_class(spec.model_type), row["nested"][key])
    return {name: {field: value for field, value in row.items() if value} for name, row in found.items()}


def ropes(config_class: Any, rotary: bool) -> dict[str, Any]:
    """Returns rotary settings of a config without any, and the completion of settings without some of `RESTS`."""
    if not rotary:
        return {}
    needed = NEEDED.get(config_class.model_type, {})
    given = config_class(**needed).rope_parameters or {}
    probe = copy.deepcopy(given)
    kinds = {kind: settings for kind, settings in probe.items() if isinstance(settings, dict)}
    for settings in kinds.values() if kinds else [probe]:
        for key in RESTS:
            settings.pop(key, None)
    try:
        rest = config_class(**needed, rope_parameters=probe).rope_parameters or {}
    except KeyError:  # the class refuses a config without settings
        return {"rope": given}
    rests = {kind: {key: rest[kind][key] for key in RESTS if key in rest[kind]} for kind in kinds}
    return {"rope": given, "rope_rest": rests or {key: rest[key] for key in RESTS if key in rest}}


def text() -> str:
    """Returns the file's content: a row for each model type."""
    types = sorted({model_type for kind in KINDS for model_type in kind} & set(CONFIG_MAPPING))
    found = {name: row for model_type in types for name, row in rows(CONFIG_MAPPING[model_type], model_type).items()}
    lines = [f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in sorted(found.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    target.write_text(text())
    print(f"{target}: {len(json.loads(target.read_text()))} model types of transformers {transformers.__version__}")
