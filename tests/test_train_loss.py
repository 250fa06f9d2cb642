"""The loss in groups of tokens against the plain loss over all logits at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import all_cases
from cases.llama import llama
from cases.t5 import t5
from trained import empty, random_model, same_tree

from easydel.errors import ArgumentError
from easydel.module import forward
from easydel.train import IGNORED, causal_loss, loss_sums
from easydel.train.loss import grouped
from easydel.train.summed import token_losses

CASES = {case.name: case for case in all_cases()}
HEADS = {
    "tied and capped": CASES["gemma2-capped"],
    "tied and scaled": CASES["cohere-plain"],
    "its own, with a bias": CASES["phi-plain"],
}
B, T, VOCABULARY = 3, 13, 97
LLAMA = llama("loss")
loss_of = jax.jit(loss_sums, static_argnums=0)


def batch() -> dict[str, Any]:
    """Ids with left padding, and labels that leave out more than the padding."""
    random = np.random.default_rng(1)
    ids = random.integers(3, VOCABULARY, (B, T))
    mask = np.ones((B, T), np.int32)
    mask[1, :4] = 0
    labels = np.where((random.random((B, T)) < 0.3) | (mask == 0), IGNORED, ids)
    return {
        name: jnp.asarray(value) for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    }


def plain_loss(model: Any, params: Any, batch: dict[str, Any], z_weight: float) -> tuple[jax.Array, jax.Array]:
    """Objective and negative log likelihood from the logits of all tokens."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = forward(model, params, inputs).logits[:, :-1].astype(jnp.float32)
    labels = batch["labels"][:, 1:]
    counts = labels != IGNORED
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(counts, labels, 0)[..., None], axis=-1)[..., 0]
    nll = -jnp.sum(chosen * counts)
    return nll + z_weight * jnp.sum(counts * jax.nn.logsumexp(logits, axis=-1) ** 2), nll


@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradients_equal_those_of_whole_logits(head: str):
    model, params = random_model(HEADS[head], layers=0)
    given = batch()

    def ours(params: Any) -> tuple[jax.Array, Any]:
        loss = loss_sums(model, params, given, z_weight=0.01, tokens=8)
        return loss.objective, loss

    def plain(params: Any) -> tuple[jax.Array, jax.Array]:
        return plain_loss(model, params, given, 0.01)

    (objective, loss), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    (expected, nll), expected_gradients = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    assert loss.tokens == np.sum(np.asarray(given["labels"])[:, 1:] != IGNORED)
    assert expected > nll > 10
    np.testing.assert_allclose([objective, loss.nll], [expected, nll], rtol=1e-6)
    same_tree(gradients, expected_gradients, 2e-6)


def test_without_a_gradient_it_is_the_same_loss():
    model, params = random_model(LLAMA, layers=0)
    loss, expected = jax.jit(
        lambda params: (
            loss_sums(model, params, batch(), z_weight=0.01, tokens=8),
            plain_loss(model, params, batch(), 0.01),
        )
    )(params)
    np.testing.assert_allclose([loss.objective, loss.nll], expected, rtol=1e-6)


def test_the_loss_is_the_mean_of_the_sums_and_can_be_differentiated():
    model, params = random_model(LLAMA, layers=0)
    sums = loss_sums(model, params, batch(), z_weight=0.01)
    loss, gradients = jax.value_and_grad(lambda params: causal_loss(model, params, batch(), z_weight=0.01))(params)
    np.testing.assert_allclose(loss, sums.objective / sums.tokens, rtol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    assert causal_loss(model, params, batch() | {"labels": jnp.full((B, T), IGNORED)}) == 0, "not NaN"


def test_shift_and_ignored_labels_are_those_of_torch():
    model, params = random_model(LLAMA, layers=0)
    given = batch()
    logits = torch.tensor(np.asarray(model.apply(params, given["input_ids"], given["attention_mask"]).logits))
    labels = torch.tensor(np.asarray(given["labels"]), dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss = loss_of(model, params, given)
    np.testing.assert_allclose(loss.nll / loss.tokens, expected.item(), rtol=1e-6)


def test_without_labels_the_attended_tokens_are_predicted():
    model, params = random_model(LLAMA, layers=0)
    given = batch()
    labels = jnp.where(given["attention_mask"] == 1, given["input_ids"], IGNORED)
    labels = labels.at[1, 4].set(IGNORED)  # the first attended token of a padded row has only padding before it
    implied = loss_of(model, params, {name: given[name] for name in ("input_ids", "attention_mask")})
    assert implied.tokens == B * (T - 1) - 4
    assert implied.nll == loss_of(model, params, given | {"labels": labels}).nll


def test_padding_on_either_side_leaves_the_loss_alone():
    model, params = random_model(LLAMA, layers=1)
    ids = np.random.default_rng(3).integers(3, VOCABULARY, (1, 6))
    alone = loss_of(model, params, {"input_ids": jnp.asarray(ids)})
    for before, after in ((3, 0), (0, 3)):
        for padding in (0, 1, 50):
            padded = {
                "input_ids": jnp.pad(jnp.asarray(ids), ((0, 0), (before, after)), constant_values=padding),
                "attention_mask": jnp.pad(jnp.ones_like(ids), ((0, 0), (before, after))),
            }
            loss = loss_of(model, params, padded)
            assert loss.tokens == alone.tokens
            np.testing.assert_allclose(loss.nll, alone.nll, rtol=1e-6)


@pytest.mark.parametrize("label", [VOCABULARY, -1])
def test_a_label_outside_of_the_vocabulary_makes_the_loss_nan(label: int):
    model, params = random_model(LLAMA, layers=0)
    given = batch()
    given["labels"] = given["labels"].at[0, 3].set(label)
    assert jnp.isnan(loss_of(model, params, given).nll)


def test_logits_are_never_whole():
    """The head's backward pass included, temporaries stay far below the logits of all tokens."""
    vocabulary, tokens, group = 6007, 1024, 64
    model = empty(llama("wide", vocab_size=vocabulary), layers=0)
    whole = tokens * vocabulary * 4
    given = {"input_ids": jax.ShapeDtypeStruct((16, tokens // 16), jnp.int32)}

    def temporaries(group: int) -> int:
        loss = jax.grad(lambda params, given: loss_sums(model, params, given, tokens=group).objective)
        analysis = jax.jit(loss).lower(model.params, given).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    in_groups, at_once = temporaries(group), temporaries(tokens)
    assert at_once > whole
    assert in_groups < 0.4 * whole  # of which gradients are a half


def test_groups_share_every_part_of_a_sequence_and_lose_nothing():
    x = jnp.arange(2 * 7 * 3).reshape(2, 7, 3)
    parts = grouped(x, 3, padding=-1)
    assert parts.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(parts[1, :, :, 0], [[3, 12, -1], [24, 33, -1]])
    assert sorted(parts.ravel().tolist()) == sorted([-1] * 12 + x.ravel().tolist())


def test_an_encoder_decoder_has_no_loss_without_labels():
    with pytest.raises(ArgumentError, match="an encoder-decoder has no loss without labels"):
        loss_sums(empty(t5("loss")), {}, {})


def test_a_logit_that_overflowed_makes_the_loss_infinite():
    logits = jnp.array([[jnp.inf, 1.0, 2.0], [-jnp.inf, 1.0, 2.0]])
    _, nll, gradient = token_losses(logits, jnp.array([1, 2]), 0.0)
    expected = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(2), jnp.array([1, 2])]
    np.testing.assert_allclose(nll, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], jax.nn.softmax(logits[1]) - jnp.array([0.0, 0, 1]), rtol=1e-6)
