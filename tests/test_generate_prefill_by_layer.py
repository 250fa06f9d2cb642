"""A prompt's pass layer by layer: its programs, and tokens that equal those of one program for all layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from cases import Case, case
from cases.llama import llama
from parity import make_reference, padded_mask, random_ids

import easydel.generate.prefill_by_layer
from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.generate.prefill_by_layer import TOGETHER, kinds_of_layers
from easydel.generate.programs import enter, leave, pass_layers, prefill
from easydel.lora import LoRA, add_adapters

LLAMA = llama("layerwise", num_hidden_layers=8)
GEMMA = case("gemma2", "layerwise", num_hidden_layers=8, head_dim=12, sliding_window=5)
BATCH, NEW = 2, 6
MESH: dict[str, Any] = {"auto_shard_params": True, "sharding_axis_dims": (2, 1, 2, 2)}


def made(model: BaseNNXModule) -> dict[str, int]:
    """How many programs there are of each function."""
    functions = (prefill, enter, pass_layers, leave)
    return {function.__name__: model.compiled(function)._cache_size() for function in functions}  # pyright: ignore


def tokens(model: BaseNNXModule, case: Case, **arguments: Any) -> np.ndarray:
    ids = random_ids(case, BATCH)
    mask = padded_mask(*ids.shape)
    return model.generate(ids, mask, max_new_tokens=NEW, eos_token_id=None, **arguments).sequences


@pytest.fixture(scope="module", params=[LLAMA, GEMMA], ids=["one kind", "two kinds"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case, np.ndarray]:
    case, directory = request.param, tmp_path_factory.mktemp("model")
    reference = make_reference(case, directory)
    ids = random_ids(case, BATCH)
    arguments: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    mask = torch.tensor(padded_mask(*ids.shape))
    return directory, case, reference.generate(torch.tensor(ids), attention_mask=mask, **arguments).numpy()


@pytest.mark.parametrize("arguments", [{}, MESH], ids=["one device", "eight devices"])
def test_a_program_for_each_kind_of_layer_makes_the_tokens_of_transformers(
    saved: tuple[Path, Case, np.ndarray], arguments: dict[str, Any]
):
    directory, case, expected = saved
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)
    kinds = len(set(kinds_of_layers(model, params)))
    np.testing.assert_array_equal(tokens(model, case), expected)
    assert made(model) == {"prefill": 0, "enter": 1, "pass_layers": kinds, "leave": 1}
    assert kinds == (1 if case is LLAMA else 2)


def test_of_long_prompts_several_layers_share_a_call(
    saved: tuple[Path, Case, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    directory, case, expected = saved
    monkeypatch.setattr(easydel.generate.prefill_by_layer, "LONG", 31)  # two rows in a bucket of 16
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    groups = {tuple(kinds_of_layers(model, params)[start : start + TOGETHER]) for start in range(0, 8, TOGETHER)}
    np.testing.assert_array_equal(tokens(model, case), expected)
    assert made(model) == {"prefill": 0, "enter": 1, "pass_layers": len(groups), "leave": 1}
    assert len(groups) == (2 if case is LLAMA else 3)


def test_few_or_stacked_layers_go_in_one_program(tmp_path: Path):
    few = llama("layerwise", num_hidden_layers=2)
    make_reference(few, tmp_path / "few")
    make_reference(LLAMA, tmp_path / "many")
    for folder, arguments in (("few", {}), ("many", {"scan_layers": True})):
        model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / folder, **arguments)
        tokens(model, LLAMA)
        assert made(model) == {"prefill": 1, "enter": 0, "pass_layers": 0, "leave": 0}


def test_layers_whose_parameters_have_other_names_are_of_another_kind(tmp_path: Path):
    """8-bit storage and adapters of some layers: an equal record is not enough."""
    make_reference(LLAMA, tmp_path)
    options: dict[str, Any] = {"load_in_8bit": True, "bit_targeted_params": ["model/layers/3", "model/layers/6"]}
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, **options)
    assert kinds_of_layers(model, params) == [0, 0, 0, 3, 0, 0, 3, 0]
    np.testing.assert_array_equal(tokens(model, LLAMA)[:, LLAMA.length], likeliest(model, params))
    assert made(model)["pass_layers"] == 2
    adapted = add_adapters(model, LoRA(r=2, target_modules=r".*layers\.[01]\.self_attn\.q_proj"))
    adapted = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.dtype == np.float32 else leaf, adapted)
    assert kinds_of_layers(model, adapted) == [0, 0, 2, 3, 2, 2, 3, 2]
    np.testing.assert_array_equal(tokens(model, LLAMA, params=adapted)[:, LLAMA.length], likeliest(model, adapted))


def likeliest(model: BaseNNXModule, params: Any) -> np.ndarray:
    """The next token of each row, by the forward pass of all layers."""
    ids = random_ids(LLAMA, BATCH)
    return np.asarray(model.apply(params, ids, padded_mask(*ids.shape)).logits[:, -1].argmax(axis=-1))


def test_layers_go_in_their_order_whatever_order_the_dict_has(tmp_path: Path):
    """What went through `jax.tree.map`, or a training step, is sorted as text: "10" before "2"."""
    make_reference(llama("layerwise", num_hidden_layers=12), tmp_path)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    mapped = jax.tree.map(lambda leaf: leaf, params)
    assert list(mapped["model"]["layers"])[2] == "10"
    np.testing.assert_array_equal(tokens(model, LLAMA, params=mapped), tokens(model, LLAMA))
    assert made(model)["pass_layers"] == 1
