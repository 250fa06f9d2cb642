"""The arguments of `generate`: transformers' names and defaults, the checkpoint's own, and refused ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from cases import Case
from cases.llama import llama
from parity import make_reference, random_ids

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.config import HFConfig
from easydel.errors import ArgumentError, ConfigError
from easydel.generate.prompt import Prompt
from easydel.generate.sampling_rules import new_tokens
from easydel.generate.settings import CHECKS, DEFAULTS, KNOWN, read_defaults, resolve

CASE = llama("arguments", num_hidden_layers=1)
NOTHING = HFConfig({})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    make_reference(CASE, directory)
    return directory


@pytest.fixture(scope="module")
def model(directory: Path) -> BaseNNXModule:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0]


@pytest.fixture
def ids() -> np.ndarray:
    return random_ids(CASE)


def prompt_of(length: int, *, padding: int = 0) -> Prompt:
    mask = np.arange(length)[None] >= padding
    return Prompt(np.ones((1, length), np.int32), mask)


def test_every_name_of_transformers_is_known():
    theirs = set(transformers.GenerationConfig().to_dict())
    assert {name for name in theirs - KNOWN if not name.startswith("_")} == set()


def test_defaults_are_those_of_transformers():
    theirs = transformers.GenerationConfig._get_default_generation_params()
    expected = {name: theirs.get(name) for name in DEFAULTS} | {"max_length": None}  # theirs is 20 new tokens
    assert expected == DEFAULTS
    assert set(CHECKS) == set(DEFAULTS)


def test_arguments_come_before_the_given_config_and_that_before_the_checkpoint():
    checkpoint = HFConfig({"temperature": 0.1, "top_k": 1, "top_p": 0.1, "min_p": 0.1, "unheard_of": 3})
    config = transformers.GenerationConfig(top_k=2, top_p=0.2, do_sample=True)
    settings = resolve(checkpoint, config, {"top_p": np.float32(0.5), "min_p": None})
    assert [settings[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [0.1, 2, 0.5, None]
    assert resolve(checkpoint, {"top_k": None}, {})["top_k"] == 1


def test_defaults_of_the_checkpoint_make_transformers_tokens(directory: Path, ids: np.ndarray, tmp_path: Path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    greedy = reference.generate(torch.tensor(ids), max_new_tokens=3, eos_token_id=None).numpy()
    settings = {
        "max_new_tokens": 7,
        "eos_token_id": [int(greedy[0, -1]), 96],
        "pad_token_id": 5,
        "early_stopping": True,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 1.3}))
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = reference.generate(torch.tensor(ids)).numpy()
    np.testing.assert_array_equal(model.generate(ids).sequences, expected)
    assert model.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("unused", [{"do_sample": False, "temperature": 0.0}, {"top_k": -1}], ids=str)
def test_greedy_decoding_takes_any_value_that_only_sampling_uses(
    directory: Path, model: BaseNNXModule, ids: np.ndarray, tmp_path: Path, unused: dict[str, Any]
):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(unused))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = reference.generate(torch.tensor(ids), max_new_tokens=5).numpy()
    loaded, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.generate(ids, max_new_tokens=5).sequences, expected)
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=5, **unused).sequences, expected)
    with pytest.raises(ArgumentError, match=r"the checkpoint's default"):
        loaded.generate(ids, do_sample=True)


@pytest.mark.parametrize("temperature", [1e-20, 1e-38, 1e-60])
@pytest.mark.parametrize("narrowed", [{"top_k": None}, {"top_k": 5, "top_p": 0.9, "min_p": 0.1}], ids=str)
def test_the_coldest_samples_are_the_likeliest_tokens(
    model: BaseNNXModule, ids: np.ndarray, temperature: float, narrowed: dict[str, Any]
):
    cold = model.generate(ids, max_new_tokens=5, do_sample=True, temperature=temperature, **narrowed)
    np.testing.assert_array_equal(cold.sequences, model.generate(ids, max_new_tokens=5).sequences)


def test_without_generation_config_the_config_says_where_to_end(tmp_path: Path):
    config = HFConfig({"eos_token_id": [3, 4], "top_k": 7, "hidden_size": 8}, file=tmp_path / "config.json")
    assert read_defaults(tmp_path, config, own=False).to_dict() == {"eos_token_id": [3, 4], "top_k": 7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert read_defaults(tmp_path, config, own=False).to_dict() == {"eos_token_id": 5}
    assert read_defaults(tmp_path, config, own=True).to_dict() == {"eos_token_id": [3, 4], "top_k": 7}  # as GGUF has it


def test_what_a_pair_leaves_open_is_what_its_decoder_says_as_in_transformers():
    decoder = {"model_type": "bert", "eos_token_id": 7, "num_beams": 4, "max_length": 50}
    pair = {"encoder": {"eos_token_id": 8}, "decoder": decoder, "eos_token_id": None, "max_length": 60}
    found = read_defaults(None, HFConfig(pair), own=False).to_dict()
    theirs = transformers.GenerationConfig.from_model_config(pair)
    assert found == {name: getattr(theirs, name) for name in found}
    assert found == {"eos_token_id": 7, "num_beams": 4, "max_length": 60}


def test_a_broken_generation_config_is_named_at_load(directory: Path, tmp_path: Path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "length", "expected"),
    [
        ({}, 13, 20),
        ({}, 50, 14),  # up to the config's 64 positions, as in transformers
        ({"max_length": 40}, 13, 27),
        ({"max_length": 40, "max_new_tokens": 3}, 13, 3),
        ({"max_new_tokens": 90}, 13, 90),  # rotary positions have no end
    ],
)
def test_lengths_are_those_of_transformers(model: BaseNNXModule, settings: dict[str, int], length: int, expected: int):
    assert new_tokens(model, resolve(NOTHING, None, settings), prompt_of(length), None) == expected


def test_learned_positions_limit_prompts_and_new_tokens(tmp_path: Path):
    sizes = {"vocab_size": 97, "n_embd": 12, "n_head": 2, "n_layer": 1, "n_positions": 16}
    make_reference(Case("gpt2-arguments", "gpt2", sizes), tmp_path)
    gpt2, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="the prompt has 17 tokens, but the model has 16 positions"):
        gpt2.generate(np.ones((1, 17), int))
    with pytest.raises(ArgumentError, match="pass max_new_tokens=7 or less"):
        gpt2.generate(np.ones((1, 10), int), max_new_tokens=8)
    padded = prompt_of(30, padding=20)
    assert new_tokens(gpt2, resolve(NOTHING, None, {"max_new_tokens": 7}), padded, None) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_token": 3}, r"max_new_token is not known \(did you mean max_new_tokens\?\)"),
        ({"num_beam_groups": 4}, "num_beam_groups=4 is not implemented"),
        ({"penalty_alpha": 0.6, "max_time": 5}, r"penalty_alpha=0.6 is not.*\n.*max_time=5 is not"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p=0.9 is not implemented"),
        ({"stopping_criteria": print}, "stopping_criteria=.* is not implemented"),
        ({"stop_strings": [""]}, r"stop_strings=\[''\], expected texts"),
        ({"bad_words_ids": [5]}, r"bad_words_ids=\[5\], expected lists of tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens=0, expected a whole number above 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5, expected a whole number"),
        ({"max_length": 13}, "a prompt of 13 tokens leaves no room for new ones in 13; pass max_new_tokens"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=False takes the likeliest token"),
        ({"do_sample": True, "top_k": -1}, "top_k=-1, expected a whole number, not below 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5, expected a number from 0 to 1"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0, expected a number above 0"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>', expected a token's number, or a list of them"),
        ({"do_sample": "yes"}, "do_sample='yes', expected True or False"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 without sampling; pass do_sample=True, or as many num"),
        ({"streamer": 3}, "streamer is a int, expected a function"),
        ({"do_sample": True, "seed": "a"}, "seed is 'a', expected a whole number"),
        ({"do_sample": True, "rng": 3}, "rng is 3, expected one key"),
        ({"do_sample": True, "rng": np.zeros(2)}, r"rng is float64\[2\], expected one key"),
        ({"do_sample": True, "rng": np.zeros((3, 2), np.uint32)}, r"rng is uint32\[3, 2\], expected one key"),
        ({"generation_config": 3}, "generation_config is a int, expected a dict"),
        ({"attention_mask": np.ones((2, 5))}, r"attention_mask has shape \(2, 5\), but input_ids \(2, 13\)"),
        ({"attention_mask": np.zeros((2, 13))}, "row 0 of input_ids is all padding"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(model: BaseNNXModule, ids: np.ndarray, arguments: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        model.generate(ids, **arguments)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "input_ids is missing"),
        ("text", r"input_ids is text, expected token ids .*tokenizer\(texts, padding=True\)"),
        (["one", "two"], "input_ids is text"),
        ({"input_ids": [[3]]}, r"input_ids is a dict; pass its entries: model\(\*\*inputs\)"),
        ([[]], r"input_ids is empty: its shape is \(1, 0\)"),
        (np.zeros((0, 4), int), "input_ids is empty"),
        ([3, 4, 5], r"expected \[batch, length\]; pass input_ids\[None\]"),
        ([[3, 4], [5]], "pad shorter rows on the left"),
        ([[3.0, 4.0]], "input_ids is float64, expected integers"),
        ([[3, 97]], r"input_ids\[0, 1\] is 97, outside the vocabulary of 97 tokens"),
        ([[3, -1]], r"input_ids\[0, 1\] is -1, outside"),
    ],
    ids=str,
)
def test_a_wrong_prompt_is_named(model: BaseNNXModule, prompt: Any, message: str):
    with pytest.raises(ArgumentError, match=message):
        model.generate(prompt)


def test_what_tokenizers_and_users_of_transformers_pass_is_taken(model: BaseNNXModule, ids: np.ndarray):
    expected = model.generate(ids, max_new_tokens=1).sequences
    np.testing.assert_array_equal(model.generate(inputs=ids, max_new_tokens=1).sequences, expected)
    types = np.zeros_like(ids)
    np.testing.assert_array_equal(model.generate(ids, token_type_ids=types, max_new_tokens=1).sequences, expected)
    with pytest.raises(ArgumentError, match="token_type_ids are not implemented in generate; leave them out"):
        model.generate(ids, token_type_ids=types + 1)


def test_under_an_outer_jit_is_refused(model: BaseNNXModule, ids: np.ndarray):
    with pytest.raises(ArgumentError, match="call it outside of"):
        jax.jit(lambda ids: model.generate(ids).sequences)(ids)


def test_what_a_checkpoint_asks_and_we_do_not_do_can_be_switched_off():
    checkpoint = HFConfig(
        {"num_beam_groups": 4, "early_stopping": True, "length_penalty": 2.0, "encoder_repetition_penalty": 1}
    )
    with pytest.raises(ArgumentError, match=r"num_beam_groups=4 \(the checkpoint's default\).*pass num_beam_groups=1"):
        resolve(checkpoint, None, {})
    assert resolve(checkpoint, None, {"num_beam_groups": 1})["max_new_tokens"] is None
    sampling_only = HFConfig({"typical_p": 0.9, "epsilon_cutoff": 0.1})
    assert resolve(sampling_only, None, {"do_sample": False})["top_k"] == 50
