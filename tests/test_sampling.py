"""Choosing the next token: each processor against transformers' own, and draws against their probabilities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from easydel.ops.sampling import Rules, Sampling, choose_tokens, process, warp

B, V, S = 4, 97, 24
SLOT, FIRST = 17, np.array([0, 3, 9, 16])  # left padding before FIRST, nothing yet from SLOT on
KEY = np.asarray(jax.random.key_data(jax.random.key(0)))


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (B, V)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Few kinds, so that runs of them repeat."""
    return np.random.default_rng(1).integers(0, 6, (B, S)).astype(np.int32)


def known(tokens: np.ndarray) -> np.ndarray:
    slots = np.arange(S)
    return np.where((slots >= FIRST[:, None]) & (slots < SLOT), tokens, V)


def processed(scores: np.ndarray, tokens: np.ndarray, rules: Rules, count: int = 0) -> np.ndarray:
    return np.asarray(process(jnp.asarray(scores), known(tokens), jnp.int32(SLOT), jnp.int32(count), rules))


def warped(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Scores of all tokens, -inf where a token is out of the choice."""
    left, ids = jax.jit(warp)(scores, sampling)
    if ids is None:
        return np.asarray(left)
    whole = np.full_like(scores, -np.inf)
    np.put_along_axis(whole, np.asarray(ids), np.asarray(left), axis=1)
    return whole


def reference(scores: np.ndarray, tokens: np.ndarray, *processors: Any) -> np.ndarray:
    out, ids = torch.tensor(scores), torch.tensor(tokens[:, :SLOT].astype(np.int64))
    for processor in processors:
        out = processor(ids, out)
    return out.numpy()


def draw(logits: Any, rules: Rules, count: int = 0) -> np.ndarray:
    logits = jnp.asarray(logits)
    empty = jnp.full((logits.shape[0], 4), logits.shape[1])
    return np.asarray(choose_tokens(logits, empty, jnp.int32(1), jnp.int32(count), rules))


@pytest.mark.parametrize("penalty", [0.4, 1.7])
def test_repetition_penalty_equals_transformers(scores: np.ndarray, tokens: np.ndarray, penalty: float):
    rules = Rules(repetition_penalty=np.float32(penalty))
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=torch.tensor(FIRST))
    np.testing.assert_allclose(processed(scores, tokens, rules), reference(scores, tokens, expected), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_banned_ngrams_equal_transformers(scores: np.ndarray, tokens: np.ndarray, size: int):
    ours = processed(scores, tokens, Rules(no_repeat_ngram_size=size))
    for row, first in enumerate(FIRST):  # transformers counts padding as tokens, so each row without it
        ids = tokens[row : row + 1, first:SLOT].astype(np.int64)
        expected = theirs.NoRepeatNGramLogitsProcessor(size)(torch.tensor(ids), torch.tensor(scores[row : row + 1]))
        np.testing.assert_array_equal(ours[row], expected[0].numpy())
    assert np.isinf(ours[0]).any()


def test_runs_longer_than_there_is_room_for_ban_nothing(scores: np.ndarray, tokens: np.ndarray):
    for size in (tokens.shape[1], tokens.shape[1] + 1, tokens.shape[1] + 2, 99):
        np.testing.assert_array_equal(processed(scores, tokens, Rules(no_repeat_ngram_size=size)), scores)


def test_no_end_before_min_new_tokens(scores: np.ndarray, tokens: np.ndarray):
    rules = Rules(eos_E=np.array([5, 90]), min_new_tokens=np.int32(3))
    for count in (2, 3):
        expected = theirs.MinNewTokensLengthLogitsProcessor(SLOT - count, 3, [5, 90])
        np.testing.assert_array_equal(
            processed(scores, tokens, rules, count), reference(scores, tokens, expected), strict=True
        )


def test_a_forced_token_is_taken_at_its_place_alone(scores: np.ndarray, tokens: np.ndarray):
    rules = Rules(forced_F=np.array([8, 9]), forced_at_F=np.array([0, 6]))
    tops = [processed(scores, tokens, rules, count).argmax(axis=1) for count in (0, 1, 6)]
    assert (tops[0] == 8).all()
    assert (tops[1] == scores.argmax(axis=1)).all()
    assert (tops[2] == 9).all()


@pytest.mark.parametrize("temperature", [0.3, 2.5])
@pytest.mark.parametrize("top_k", [1, 7, None])
@pytest.mark.parametrize("top_p", [0.0, 0.35, 0.93, None])
@pytest.mark.parametrize("min_p", [0.0, 0.2, 1.0, None])
def test_warped_scores_equal_transformers(
    scores: np.ndarray,
    tokens: np.ndarray,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
):
    sampling = Sampling(
        KEY,
        np.float32(temperature),
        None if top_k is None else np.int32(top_k),
        None if top_p is None else np.float32(top_p),
        None if min_p is None else np.float32(min_p),
        candidates=0 if top_k is None else 16,
    )
    warpers: list[Any] = [theirs.TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        warpers.append(theirs.TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(theirs.TopPLogitsWarper(top_p))
    if min_p is not None:
        warpers.append(theirs.MinPLogitsWarper(min_p))
    np.testing.assert_allclose(warped(scores, sampling), reference(scores, tokens, *warpers), rtol=1e-6)


def test_equal_scores_at_the_k_th_all_stay():
    row = np.array([[3.0, 1.0, 2.0, 1.0, 0.5, 1.0]], np.float32)
    kept = np.isfinite(warped(row, Sampling(KEY, np.float32(1), top_k=np.int32(3), candidates=6)))
    assert (kept == np.isfinite(reference(row, np.zeros((1, S), np.int32), theirs.TopKLogitsWarper(3)))).all()
    assert kept.sum() == 5


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = np.tile(np.array([0.0, 1.0, -1.0, 2.0, -np.inf, 0.5, 1.5], np.float32), (20_000, 1))
    for temperature, top_k in ((1.0, None), (2.0, 3)):
        sampling = Sampling(KEY, np.float32(temperature), top_k and np.int32(top_k), candidates=4 if top_k else 0)
        drawn = draw(logits, Rules(sampling))
        weights = np.exp(logits[0] / temperature)
        if top_k is not None:
            weights[np.argsort(weights)[:-top_k]] = 0
        expected = weights / weights.sum()
        deviation = np.sqrt(expected * (1 - expected) / len(drawn))
        found = np.bincount(drawn, minlength=7) / len(drawn)
        assert (np.abs(found - expected) <= 4.5 * deviation).all()


def test_draws_depend_on_the_seed_the_count_and_the_row_alone():
    logits = np.zeros((64, 1000), np.float32)
    rules = Rules(Sampling(KEY, np.float32(1)))
    drawn = draw(logits, rules)
    assert (draw(logits, rules) == drawn).all()
    assert (draw(logits[:5], rules) == drawn[:5]).all()
    assert len(set(drawn)) > 50
    other_key = np.asarray(jax.random.key_data(jax.random.key(1)))
    for other in (draw(logits, rules, count=1), draw(logits, Rules(Sampling(other_key, np.float32(1))))):
        assert (other == drawn).mean() < 0.1
