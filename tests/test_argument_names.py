"""Arguments by the names that transformers has for them: each is told what it is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.valid import write_safetensors

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM

load = AutoEasyDeLModelForCausalLM.from_pretrained


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"torch_dtype": "auto"}, r"pass dtype \(of the computation\) and param_dtype"),
        ({"device_map": "auto"}, "pass auto_shard_params=True"),
        ({"auto_shard_param": True}, "did you mean auto_shard_params?"),
        ({"attn_implementation": "sdpa"}, "leave attn_implementation out"),
        ({"low_cpu_mem_usage": True}, "leave low_cpu_mem_usage out"),
        ({"quantization_config": {}}, "pass load_in_8bit=True"),
        ({"gguf_file": "a.gguf"}, "pass the path of the GGUF file"),
        ({"output_loading_info": True}, "model.load_report"),
        ({"gradient_checkpointing": True}, "pass remat=True"),
        ({"config_kwargs": {"gradient_checkpointing": True}}, "config_kwargs has gradient_checkpointing.*remat=True"),
        ({"config_kwargs": {"hiden_size": 5}}, r"config_kwargs has \['hiden_size'\], which are no keys of the config"),
    ],
    ids=str,
)
def test_what_transformers_calls_otherwise_is_told(tmp_path: Path, given: dict[str, Any], told: str):
    write_safetensors(tmp_path)
    with pytest.raises(ArgumentError, match=told):
        load(tmp_path, **given)


@pytest.mark.parametrize("name", [None, 5])
def test_a_name_that_is_none_is_told(name: Any):
    with pytest.raises(ArgumentError, match=f"the name of the model is {name}; expected a Hub id"):
        load(name)


def test_an_argument_of_transformers_that_is_also_a_key_of_the_config_is_not_ignored(tmp_path: Path):
    write_safetensors(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"torch_dtype": "float32"}))
    with pytest.raises(ArgumentError, match="pass dtype"):
        load(tmp_path, torch_dtype="bfloat16")
