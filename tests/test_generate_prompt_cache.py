"""Prompts that are read in parts, or were partly read before, give the same tokens as prompts read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cases import Case, all_cases
from cases.llama import llama
from parity import make_reference, padded_mask, random_ids

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.errors import ArgumentError
from easydel.generate import PromptCache

CASE = llama("kept", num_hidden_layers=2)
NEW: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None, "repetition_penalty": 1.2}


def loaded(case: Case, directory: Path) -> BaseNNXModule:
    make_reference(case, directory)
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseNNXModule:
    return loaded(CASE, tmp_path_factory.mktemp("model"))


def test_turns_of_a_conversation_equal_those_computed_anew(model: BaseNNXModule):
    kept, said, more = PromptCache(), random_ids(CASE, 1), random_ids(CASE, 1, 300, seed=1)
    reused = []
    # a turn, a streamed one, one longer than the cache, and one that goes back into the first answer
    for options, edit in [({}, None), ({"streamer": lambda tokens: None}, 3), ({}, 200), ({}, -210), ({}, 4)]:
        if edit is not None:
            said = said[:, :edit] if edit < 0 else np.concatenate([said, more[:, :edit]], axis=1)
        out = model.generate(said, prompt_cache=kept, **NEW, **options).sequences
        np.testing.assert_array_equal(out, model.generate(said, **NEW).sequences)
        reused.append(kept.reused)
        said = out
    # all but the last new token has been read; going back leaves a prompt whose last token is read again
    assert reused == [0, 13 + 7, 13 + 8 + 3 + 7, 13 + 8 + 3 + 8 + 200 + 8 - 210 - 1, 30 + 7]


@pytest.mark.parametrize("length", [100, 128, 13])
def test_an_answer_of_one_token_can_be_followed_by_a_shorter_prompt(model: BaseNNXModule, length: int):
    kept, said = PromptCache(), random_ids(CASE, 1, length)
    model.generate(said, prompt_cache=kept, **NEW | {"max_new_tokens": 1})
    other = np.concatenate([said[:, :6], random_ids(CASE, 1, 5, seed=1)], axis=1)
    out = model.generate(other, prompt_cache=kept, **NEW).sequences
    np.testing.assert_array_equal(out, model.generate(other, **NEW).sequences)
    assert kept.reused == 6


def test_only_what_the_same_parameters_computed_is_used(model: BaseNNXModule):
    kept, said = PromptCache(), random_ids(CASE, 1)
    said = model.generate(said, prompt_cache=kept, **NEW).sequences
    other = jax.tree.map(lambda leaf: leaf[::-1] if leaf.shape == (97, 48) else leaf, model.params)
    out = model.generate(said, prompt_cache=kept, params=other, **NEW).sequences
    assert kept.reused == 0
    np.testing.assert_array_equal(out, model.generate(said, params=other, **NEW).sequences)


def test_holes_in_a_mask_are_not_mixed_up_with_what_is_kept(model: BaseNNXModule):
    kept, said = PromptCache(), random_ids(CASE, 1)
    said[0, 3] = said[0, 2]
    holes = np.ones_like(said)
    holes[0, 2] = 0
    for masks in ((holes, holes), (holes, None), (None, holes)):
        kept.clear()
        for mask in masks:
            out = model.generate(said, mask, prompt_cache=kept, **NEW).sequences
            np.testing.assert_array_equal(out, model.generate(said, mask, **NEW).sequences)
    model.generate(said, prompt_cache=kept, **NEW)
    padded = np.concatenate([np.zeros((1, 3), int), said], axis=1)
    out = model.generate(padded, np.arange(padded.shape[1])[None] >= 3, prompt_cache=kept, **NEW).sequences
    assert kept.reused == said.shape[1] - 1  # padding before a prompt is no hole
    np.testing.assert_array_equal(out[:, 3:], model.generate(said, **NEW).sequences)


def test_a_call_that_fails_leaves_nothing_behind(model: BaseNNXModule):
    def fail(tokens: np.ndarray) -> None:
        raise RuntimeError("nobody listens")

    kept, said = PromptCache(), random_ids(CASE, 1)
    said = model.generate(said, prompt_cache=kept, **NEW).sequences
    with pytest.raises(RuntimeError, match="nobody"):
        model.generate(said, prompt_cache=kept, streamer=fail, **NEW)
    out = model.generate(said, prompt_cache=kept, **NEW).sequences
    np.testing.assert_array_equal(out, model.generate(said, **NEW).sequences)


def test_several_rows_are_refused(model: BaseNNXModule):
    with pytest.raises(ArgumentError, match="one sequence, but there are 2"):
        model.generate(random_ids(CASE, 2), prompt_cache=PromptCache(), **NEW)


MAMBA = next(case for case in all_cases() if case.model_type == "mamba")


def test_prompts_read_in_parts_give_the_same_tokens(model: BaseNNXModule):
    ids = random_ids(CASE, 2, 29)
    mask = padded_mask(*ids.shape)
    expected = model.generate(ids, mask, **NEW).sequences
    np.testing.assert_array_equal(model.generate(ids, mask, prefill_chunk_size=10, **NEW).sequences, expected)
    kept = PromptCache()
    one = model.generate(ids[:1], prefill_chunk_size=10, prompt_cache=kept, **NEW).sequences
    longer = np.concatenate([one, ids[1:]], axis=1)
    out = model.generate(longer, prefill_chunk_size=10, prompt_cache=kept, **NEW).sequences
    np.testing.assert_array_equal(out, model.generate(longer, **NEW).sequences)
    assert kept.reused == 29 + 7


def test_recurrent_states_are_read_in_parts_but_not_kept(tmp_path: Path):
    model, kept, ids = loaded(MAMBA, tmp_path), PromptCache(), random_ids(MAMBA, 1, 29)
    expected = model.generate(ids, **NEW).sequences
    for _ in range(2):
        out = model.generate(ids, prefill_chunk_size=10, prompt_cache=kept, **NEW).sequences
        np.testing.assert_array_equal(out, expected)
        assert kept.reused == 0
