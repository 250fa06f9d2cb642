"""The settings of a language model in a multimodal model's config, as transformers reads them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transformers

from easydel.config import HFConfig
from easydel.errors import EasyDeLError, UnsupportedModelError
from easydel.families import all_wrappers, find_family
from easydel.weights.sources import Zeros

Config = dict[str, Any]
TIED = "tie_word_embeddings"
GEMMA_4B: Config = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
GEMMA_27B: Config = {
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
MISTRAL_SMALL: Config = {
    "model_type": "mistral3",
    "text_config": {
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
}
LLAVA: Config = {
    "model_type": "llava",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
}
QWEN_FLAT: Config = {
    "model_type": "qwen2_5_vl",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_token_id": 151654,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
    "vision_config": {"depth": 32},
}
FUYU_FLAT: Config = {
    "model_type": "fuyu",
    "hidden_act": "relu2",
    "hidden_size": 4096,
    "image_size": 300,
    "intermediate_size": 16384,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 16384,
    "num_attention_heads": 64,
    "num_channels": 3,
    "num_hidden_layers": 36,
    "partial_rotary_factor": 0.5,
    "patch_size": 30,
    "qk_layernorm": True,
    "rope_scaling": None,
    "rope_theta": 25000.0,
    "vocab_size": 262144,
}
HUB = {"gemma 4b": GEMMA_4B, "gemma 27b": GEMMA_27B, "mistral small": MISTRAL_SMALL, "llava": LLAVA, "qwen": QWEN_FLAT}
HUB |= {"fuyu": FUYU_FLAT}
# Keys without which transformers' own defaults are no model that runs.
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64}
NEEDED = {"qwen4_exp": INDEXER | {"indexer_compress_ratio": 8}}
EMPTY = {
    f"{name} without keys": {"model_type": name, "text_config": NEEDED.get(name, {})} for name in sorted(all_wrappers())
}


@pytest.mark.parametrize("written", [*HUB.values(), *EMPTY.values()], ids=[*HUB, *EMPTY])
def test_keys_that_a_config_lacks_are_those_of_transformers(written: Config):
    values = {key: value for key, value in written.items() if key != "model_type"}
    whole = transformers.AutoConfig.for_model(theirs(written["model_type"]), **json.loads(json.dumps(values)))
    full = written | json.loads(whole.to_json_string(use_diff=False))
    complete = {key: full[key] for key in ("model_type", "text_config", TIED) if key in full}
    assert record_of(written) == record_of(complete)


def theirs(model_type: str) -> str:
    """The name of the type in transformers."""
    return "phi4_multimodal" if model_type == "phi4mm" else model_type


def record_of(config: Config) -> Any:
    found = language_config(config)
    family = find_family(found.model_type)
    return family.record(family.configured(found))[0]


def language_config(config: Config) -> HFConfig:
    return all_wrappers()[config["model_type"]].language_config(HFConfig(config))


def test_adapters_for_other_inputs_in_a_file_are_left_out():
    wrapper = all_wrappers()["phi4_multimodal"]
    layer = "model.layers.0.mlp.down_proj"
    kinds = ("base_layer", "lora_A.speech", "lora_B.vision")
    names = [f"{layer}.{kind}.weight" for kind in kinds] + ["model.embed_tokens_extend.audio_embed.encoder.norm.bias"]
    tensors = {name: Zeros(name, (2, 2), Path()) for name in names}
    read = wrapper.language_tensors(HFConfig({"model_type": "phi4_multimodal"}), tensors)
    assert read == {f"{layer}.weight": tensors[names[0]]}


@pytest.mark.parametrize("model_type", all_wrappers())
@pytest.mark.parametrize("outer", [None, False, True])
@pytest.mark.parametrize("inner", [None, False, True])
def test_a_head_is_tied_where_transformers_ties_it(model_type: str, outer: bool | None, inner: bool | None):
    text, rest = ({} if value is None else {TIED: value} for value in (inner, outer))
    text = NEEDED.get(model_type, {}) | text
    config = transformers.AutoConfig.for_model(theirs(model_type), text_config=dict(text), **rest)
    tied = getattr(config, TIED, False)
    if inner and outer is None:  # some of transformers' classes then make a head of random numbers
        tied = True
    if model_type == "mllama":  # there are more token vectors than logits
        tied = False
    if theirs(model_type) == "phi4_multimodal":  # it has no text_config
        tied = bool(outer)
    if model_type in ("inkling_mm_model", "inkling2") and tied:  # transformers ties no heads of these, silently
        with pytest.raises(UnsupportedModelError, match="tie_word_embeddings is True"):
            record_of({"model_type": model_type, "text_config": text, **rest})
        return
    assert record_of({"model_type": model_type, "text_config": text, **rest}).head.tied == tied


@pytest.mark.parametrize("model_type", all_wrappers())
def test_values_that_cannot_be_meant_raise_nothing_but_our_errors(model_type: str):
    wrong = ("x", "", -1, True, [], [5], {"a": 1}, float("nan"), None)
    outer = [{key: value} for key in (TIED, "text_config", "eos_token_id") for value in wrong]
    inner = [{key: value} for key in ("model_type", TIED, "rope_scaling", "rope_parameters") for value in wrong]
    for change in [*outer, *({"text_config": text} for text in inner)]:
        with suppress(EasyDeLError):
            config = language_config({"model_type": model_type, "text_config": {}, **change})
            json.dumps(config.to_dict())
            record_of({"model_type": model_type, "text_config": {}, **change})
