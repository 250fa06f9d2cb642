"""A model's inputs: arrays that do not fit are refused, and all others have an effect on the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases.gpt2 import CASES as GPT2
from cases.llama import llama
from parity import assert_close, make_reference, random_ids
from trained import random_model, small

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.train import loss_sums
from easydel.tree import flatten, unflatten

IDS = np.random.default_rng(0).integers(0, 97, (2, 7))


@pytest.fixture(scope="module")
def model() -> BaseNNXModule:
    return random_model(small(llama("inputs"), num_hidden_layers=1))[0]


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "segment_ids"])
@pytest.mark.parametrize("shape", [(2, 1), (2, 9), (2, 5), (3, 7)])
def test_a_shape_other_than_that_of_the_ids_is_refused(model: BaseNNXModule, name: str, shape: tuple[int, int]):
    with pytest.raises(ArgumentError, match=rf"{name} has shape \({shape[0]}, {shape[1]}\), expected \(2, 7\)"):
        model(IDS, **{name: np.ones(shape, int)})


@pytest.mark.parametrize("name", ["encoder_outputs", "head_mask", "decoder_input_ids"])
def test_an_input_that_the_model_does_not_take_is_named(model: BaseNNXModule, name: str):
    with pytest.raises(ArgumentError, match=f"takes no {name}; it takes input_ids, attention_mask"):
        model(IDS, **{name: IDS})


def test_one_row_of_positions_is_for_all(model: BaseNNXModule):
    positions = np.arange(7)[None] + 3
    ours = model(IDS, position_ids=positions).logits
    np.testing.assert_array_equal(ours, model(IDS, position_ids=np.repeat(positions, 2, axis=0)).logits)


def test_with_a_cache_the_mask_is_that_of_the_new_tokens(model: BaseNNXModule):
    cache = model(IDS[:, :4], np.ones((2, 4), int), cache=model.init_cache(2, 12)).cache
    with pytest.raises(ArgumentError, match=r"attention_mask has shape \(2, 7\).*the new tokens alone"):
        model(IDS[:, 4:], np.ones((2, 7), int), cache=cache)


def test_tokens_beyond_a_cache_are_refused_or_make_nan(model: BaseNNXModule):
    with pytest.raises(ArgumentError, match="7 tokens do not fit into a cache of 4"):
        model(IDS, cache=model.init_cache(2, 4))
    out = model(IDS[:, :4], cache=model.init_cache(2, 6))
    assert np.isfinite(model(IDS[:, 4:6], cache=out.cache).logits).all()
    assert np.isnan(model(IDS[:, 4:], cache=out.cache).logits).all()


@pytest.mark.parametrize("ids", [[[1, 2, 3], [4, 5]], [[1, [2]]]], ids=str)
def test_rows_of_unequal_lengths_are_refused(model: BaseNNXModule, ids: list[Any]):
    for call in (model, model.generate):
        with pytest.raises(ArgumentError, match=r"input_ids is no array.*pad shorter rows"):
            call(ids)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 7).bfloat16(), torch.ones(2, 7, requires_grad=True), torch.ones(2, 7, device="meta")],
    ids=["bfloat16", "with a gradient", "elsewhere"],
)
def test_a_tensor_of_torch_that_numpy_cannot_take_is_refused(model: BaseNNXModule, mask: torch.Tensor):
    for call in (model, model.generate):
        with pytest.raises(ArgumentError, match="attention_mask is no array"):
            call(IDS, mask)


@pytest.mark.parametrize("mask", [[["a"] * 7] * 2, [[None] * 7] * 2], ids=["text", "None"])
def test_a_mask_that_holds_no_numbers_is_refused(model: BaseNNXModule, mask: list[Any]):
    for call in (model, model.generate):
        with pytest.raises(ArgumentError, match=r"attention_mask is (<U1|object), expected numbers"):
            call(IDS, mask)


@pytest.mark.parametrize("given", [{}, {"attention_mask": np.ones((2, 7), int)}], ids=str)
def test_a_call_without_ids_says_what_is_missing(model: BaseNNXModule, given: dict[str, Any]):
    for call in (model, lambda **inputs: model.apply(model.params, **inputs)):
        with pytest.raises(ArgumentError, match=r"^input_ids is missing"):
            call(**given)


@pytest.mark.parametrize("wrong", [97, -1])
def test_ids_of_no_token_are_refused(model: BaseNNXModule, wrong: int):
    ids = IDS.copy()
    ids[1, 2] = wrong
    for given in (ids, ids.tolist()):
        with pytest.raises(ArgumentError, match=rf"input_ids\[1, 2\] is {wrong}, outside the vocabulary of 97"):
            model(given)


@pytest.mark.parametrize("shape", [(2, 0), (0, 7)])
def test_no_tokens_are_refused(model: BaseNNXModule, shape: tuple[int, int]):
    with pytest.raises(ArgumentError, match="input_ids is empty"):
        model(np.zeros(shape, int))


def test_more_tokens_than_positions_are_refused():
    model, params = random_model(small(GPT2[0], n_layer=1))
    longest = model.record.longest
    assert longest is not None
    ids = np.zeros((1, longest + 1), np.int32)
    with pytest.raises(ArgumentError, match=f"{longest + 1} tokens are more than the {longest} positions"):
        model(ids)
    with pytest.raises(ArgumentError, match=f"{longest + 1} tokens are more than the {longest} positions"):
        loss_sums(model, params, {"input_ids": jnp.asarray(ids)})


def test_apply_takes_all_parameters_and_no_others(model: BaseNNXModule):
    leaves = flatten(model.params)
    without = {path: leaf for path, leaf in leaves.items() if path != "lm_head/kernel"}
    for params, problem in (
        (unflatten(without), "lm_head/kernel is missing"),
        (unflatten(leaves | {"model/foo": leaves["lm_head/kernel"]}), "model/foo is not the model's"),
    ):
        for call in (model.apply, jax.jit(model.apply), lambda params, ids: model.generate(ids, params=params)):
            with pytest.raises(ArgumentError, match=problem):
                call(params, IDS)


def test_deleted_parameters_are_an_error_that_says_where_the_new_ones_are(tmp_path: Path):
    model, params = random_model(small(llama("deleted"), num_hidden_layers=1))
    jax.tree.map(lambda leaf: leaf.delete(), params)
    calls: list[Callable[[], Any]] = [
        lambda: model(IDS),
        lambda: model.generate(IDS),
        lambda: model.save_pretrained(tmp_path / "model"),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match=r"given up.*after a training step.*state\.params"):
            call()


def test_loss_hidden_states_and_own_vectors_equal_transformers(tmp_path: Path):
    case = llama("between", num_hidden_layers=2)
    reference = make_reference(case, tmp_path)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(case)
    labels = np.where(ids % 3 == 0, -100, ids)
    ours = model(ids, labels=labels, output_hidden_states=True)
    with torch.no_grad():
        theirs = reference(torch.tensor(ids), labels=torch.tensor(labels), output_hidden_states=True)
    np.testing.assert_allclose(ours.loss, theirs.loss.numpy(), rtol=1e-4)
    assert ours[0] is ours.loss
    assert ours.hidden_states is not None
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(mine, other.numpy())
    vectors = params["model"]["embed_tokens"]["embedding"][ids]
    np.testing.assert_array_equal(model(inputs_embeds=vectors).logits, model(ids)[0])
    with pytest.raises(ArgumentError, match="exclude each other"):
        model(ids, inputs_embeds=vectors)
    with pytest.raises(ArgumentError, match=r"inputs_embeds is int.*expected floats \[batch, length, features\]"):
        model(inputs_embeds=ids)
    with pytest.raises(ArgumentError, match="labels have shape"):
        model(ids, labels=labels[:, 1:])
