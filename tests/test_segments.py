"""Documents packed into one row: each gives the same logits, loss and gradients as it does alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, all_cases
from cases.llama import llama
from cases.t5 import t5
from parity import random_ids
from trained import empty, random_model, same_tree, small

import easydel.ops.chunked as chunked
from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.layers.context import counted, segment_starts
from easydel.train import loss_sums
from easydel.train.loss import next_tokens

CASES = {case.name: case for case in all_cases()}
LLAMA = llama("segments")
PACKED = [
    LLAMA,
    CASES["gemma2-capped"],
    CASES["deepseek_v2-groups-no-q-latent-biased-yarn"],
    CASES["bloom-plain"],
    CASES["falcon-alibi"],
    CASES["gpt2-plain"],
]
T, LENGTHS = 24, [[9, 6, 9], [9, 15]]  # documents of each row
# segment_ids: those of the second row do not start at 0, and one comes again
SEGMENTS = np.stack([np.repeat([7, 2, 7][: len(row)], row) for row in LENGTHS])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunked, "CHUNK", 4)


def alone(ids: np.ndarray) -> list[np.ndarray]:
    """The documents, [length] each."""
    return [part for row, cuts in zip(ids, LENGTHS, strict=True) for part in np.split(row, np.cumsum(cuts)[:-1])]


@pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)
def test_packed_documents_have_the_logits_that_they_have_alone(case: Case):
    model, _ = random_model(case, layers=2)
    ids = random_ids(case, length=T)
    packed = np.asarray(model(ids, segment_ids=SEGMENTS).logits)
    separate = [np.asarray(model(document[None]).logits)[0] for document in alone(ids)]
    expected = np.concatenate(separate).reshape(packed.shape)
    np.testing.assert_allclose(packed, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(packed - np.asarray(model(ids).logits)).max() > 1e-2, "segments make a difference"


def test_padding_within_packed_rows_changes_nothing():
    model, _ = random_model(LLAMA, layers=1)
    ids = random_ids(LLAMA, length=T)
    expected = np.asarray(model(ids, segment_ids=SEGMENTS).logits)
    # in the middle of the first document, at the end of it, and after the last one, where it is a segment of its own
    places = [4] * 2 + [9] * 3 + [T]
    padded, segments = (np.insert(part, places, fill, axis=1) for part, fill in ((ids, 0), (SEGMENTS, [7] * 5 + [3])))
    mask = np.insert(np.ones((2, T), int), places, 0, axis=1)
    found = np.asarray(model(padded, mask, segment_ids=segments).logits)[:, mask[0] == 1]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("choices", [{"scan_layers": True, "remat": "everything"}, {"mesh": (1, 2, 1, 4)}], ids=str)
def test_loss_and_gradients_are_the_sums_of_those_of_the_documents(choices: dict[str, Any]):
    """On a mesh too, by the ring that goes round its last axis."""
    case = small(LLAMA)
    model, params = random_model(case, **choices)
    ids = random_ids(case, length=T)

    def summed(params: Any, batches: list[dict[str, Any]]) -> Any:
        losses = [loss_sums(model, params, batch) for batch in batches]
        return sum(loss.objective for loss in losses), sum(loss.tokens for loss in losses)

    gradient = jax.jit(jax.value_and_grad(summed, has_aux=True))
    (loss, tokens), gradients = gradient(params, [{"input_ids": ids, "segment_ids": SEGMENTS}])
    (expected, count), expected_gradients = gradient(params, [{"input_ids": part[None]} for part in alone(ids)])
    assert tokens == count == 2 * T - 5
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    same_tree(gradients, expected_gradients, 1e-5)


def test_a_segment_begins_wherever_the_id_changes():
    ids = jnp.array([[5, 5, 2, 2, 2, 5, 5], [0, 0, 0, 0, 0, 0, 1]])
    assert segment_starts(ids).tolist() == [[0, 0, 2, 2, 2, 5, 5], [0, 0, 0, 0, 0, 0, 6]]
    valid = jnp.array([[1, 1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1, 1]], bool)
    positions = jnp.where(valid, counted(valid, segment_starts(ids)), 9)
    assert positions.tolist() == [[0, 1, 0, 9, 1, 9, 0], [9, 9, 0, 1, 2, 3, 0]]


def test_the_last_token_of_a_segment_predicts_nothing():
    batch = {"input_ids": jnp.array([[5, 6, 7, 8, 9]]), "segment_ids": jnp.array([[0, 0, 1, 1, 1]])}
    assert next_tokens(batch).tolist() == [[6, -100, 8, 9, -100]]
    labels = {"labels": jnp.array([[1, 2, 3, -100, 5]])}
    assert next_tokens(batch | labels).tolist() == [[2, -100, -100, 5, -100]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"segment_ids": np.zeros((1, 8), int)}, r"segment_ids has shape \(1, 8\), expected \(2, 8\) as the ids"),
        ({"segment_ids": np.zeros(8, int)}, r"segment_ids has shape \(8,\), expected \[batch, length\]"),
        ({"segment_ids": np.zeros((2, 8))}, "segment_ids is float64, expected integers"),
        ({"segment_ids": np.zeros((2, 8), int), "cache": True}, "segment_ids with a cache"),
    ],
)
def test_segments_that_make_no_sense_are_refused(given: dict[str, Any], message: str):
    model, _ = random_model(LLAMA, layers=1)
    if "cache" in given:
        given = given | {"cache": model.init_cache(2, 16)}
    with pytest.raises(ArgumentError, match=message):
        model(random_ids(LLAMA, length=8), **given)


UNPACKED = [CASES["mamba-plain"], CASES["qwen4_exp_text-ngrams"], CASES["bert-both-ways"], t5("segments")]


@pytest.mark.parametrize("case", UNPACKED, ids=lambda case: case.model_type)
def test_models_without_segments_refuse_them(case: Case):
    model = empty(case)
    ids = np.zeros((1, 4), int)
    inputs = model.record.example({"input_ids": ids}) | {"segment_ids": ids}
    with pytest.raises(UnsupportedModelError, match="segment_ids are not implemented for"):
        model.apply(model.params, **inputs)
