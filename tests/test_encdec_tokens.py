"""Every encoder-decoder writes transformers' tokens, one by one and by beams, also behind tokens that are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, all_cases
from cases.bart import whole
from cases.llama import llama
from parity import make_reference, padded_mask, random_ids

from easydel import AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM, BaseNNXModule
from easydel.errors import ArgumentError

LAYERS = ["encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers", "num_layers"]
LAYERS += ["num_sparse_encoder_layers", "num_sparse_decoder_layers"]


def short(case: Case) -> Case:
    """The case with one layer in each tower: other tests have its several kinds of layers."""
    return replace(case, config=case.config | dict.fromkeys(case.config.keys() & {*LAYERS}, 1))


# Each type's first case, and a pair with a projection. Some say nothing of special tokens, or the last token of all.
CASES = {case.model_type: short(case) for case in reversed(all_cases()) if case.seq2seq}
PROJECTED = next(case for case in all_cases() if case.name == "roberta2gpt2")
Settings = dict[str, Any]
START: Settings = {"decoder_start_token_id": 5, "max_new_tokens": 4}
BEAMS: Settings = {"num_beams": 4, "length_penalty": 2.0}
KINDS = {"return_dict_in_generate": True, "output_scores": True, "use_cache": True}


def inputs_of(case: Case) -> Settings:
    ids = random_ids(case)
    return {"input_ids": ids, "attention_mask": padded_mask(*ids.shape)[:, ::-1].copy()}


def check(model: BaseNNXModule, reference: Any, inputs: Settings, **settings: Any) -> None:
    """Compares tokens, and those of beams with their scores."""
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    for beams in ({"num_beams": 1}, BEAMS):
        chosen: Settings = settings | beams
        expected = reference.generate(**tensors, **KINDS, **chosen)
        found = model.generate(**(inputs | chosen))
        np.testing.assert_array_equal(found.sequences, expected.sequences.numpy())
    assert found.sequences_scores is not None
    np.testing.assert_allclose(found.sequences_scores, expected.sequences_scores.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [*CASES.values(), PROJECTED], ids=lambda case: case.name)
def test_tokens_are_transformers_one_by_one_and_by_beams(case: Case, tmp_path: Path):
    reference = make_reference(case, tmp_path)
    reference.config.use_cache = True  # FSMT's beams are right with a cache alone
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    check(model, reference, inputs_of(case), **START)


BEGUN = np.array([[40, 41, 42], [5, 43, 44]])


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseNNXModule, Any]:
    directory = tmp_path_factory.mktemp("bart")
    reference = make_reference(whole("bart", "begun", encoder_layers=1, decoder_layers=1), directory)
    return AutoEasyDeLModelForSeq2SeqLM.from_pretrained(directory)[0], reference


@pytest.mark.parametrize(
    ("begun", "settings"),
    [
        (BEGUN, {}),  # one row has the first token, so no row gets it
        (BEGUN + 1, {"encoder_no_repeat_ngram_size": 1, "min_length": 7, "eos_token_id": [2, 23, 51]}),
    ],
    ids=["as-it-is", "behind-the-first"],
)
def test_an_answer_that_is_begun_goes_on_as_in_transformers(
    bart: tuple[BaseNNXModule, Any], begun: np.ndarray, settings: Settings
):
    check(*bart, inputs_of(CASES["bart"]) | {"decoder_input_ids": begun}, **START, **settings)


@pytest.mark.parametrize("model_type", ["bart", "t5"])  # with positions by the mask, and with distances
def test_padding_in_a_beginning_changes_nothing(model_type: str, tmp_path: Path):
    case, padding = CASES[model_type], np.array([[1, 1, 1], [0, 1, 1]])
    make_reference(case, tmp_path)
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    inputs, settings = inputs_of(case), START | BEAMS | {"repetition_penalty": 3.0}
    found = model.generate(**inputs, decoder_input_ids=BEGUN + 1, decoder_attention_mask=padding, **settings)
    row = {name: array[1:] for name, array in inputs.items()}
    alone = model.generate(**row, decoder_input_ids=BEGUN[1:, 1:] + 1, **settings)
    assert found.sequences[1].tolist() == [5, 6, *alone.sequences[0, 1:]]
    np.testing.assert_allclose(found.sequences_scores[1:], alone.sequences_scores, rtol=1e-5)  # pyright: ignore


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder_input_ids": BEGUN[:1]}, "decoder_input_ids have 1 rows, but input_ids 2"),
        ({"decoder_input_ids": BEGUN + 60}, r"decoder_input_ids\[0, 0\] is 100"),
        ({"decoder_attention_mask": BEGUN}, "decoder_attention_mask without decoder_input_ids"),
        (
            {"decoder_input_ids": BEGUN, "decoder_attention_mask": BEGUN * [[1], [0]]},
            "row 1 of decoder_input_ids is all padding",
        ),
        (
            {"decoder_input_ids": BEGUN, "decoder_attention_mask": BEGUN[:, 1:]},
            r"decoder_attention_mask has shape \(2, 2\), but decoder_input_ids \(2, 3\)",
        ),
    ],
    ids=["rows", "vocabulary", "mask-alone", "all-padding", "mask-shape"],
)
def test_beginnings_that_do_not_fit_are_refused(bart: tuple[BaseNNXModule, Any], arguments: Settings, message: str):
    with pytest.raises(ArgumentError, match=message):
        bart[0].generate(**inputs_of(CASES["bart"]), **arguments)


def test_a_decoder_takes_no_beginning_beside_its_prompt(tmp_path: Path):
    case = llama("begun", num_hidden_layers=1)
    make_reference(case, tmp_path)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(
        ArgumentError, match="decoder_input_ids are for encoder-decoders; pass the prompts as input_ids"
    ):
        model.generate(random_ids(case), decoder_input_ids=BEGUN)
