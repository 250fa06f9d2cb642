"""Experts that take a limited number of tokens leave out those that transformers' routers leave out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import padded_mask
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from easydel.errors import ConfigError
from easydel.layers.capacity import FirstChoice, TwoChoices
from easydel.layers.mlp import MLP
from easydel.layers.moe import MoE

B, T, E = 3, 11, 4
LOGITS = np.random.default_rng(5).normal(size=(B, T, E)).astype(np.float32)
MASK = padded_mask(B, T, step=2)


def by_expert(chosen: tuple[Any, Any]) -> np.ndarray:
    """The weight of each expert, [B, T, E]."""
    weights, experts = chosen
    return np.sum(np.asarray(weights)[..., None] * (np.asarray(experts)[..., None] == np.arange(E)), axis=-2)


@pytest.mark.parametrize("capacity", [2, 64])
def test_first_choices_of_a_row_find_the_places_that_they_find_in_transformers(capacity: int):
    config = SwitchTransformersConfig(d_model=E, num_experts=E, expert_capacity=capacity)
    theirs = SwitchTransformersTop1Router(config).eval()  # without noise
    theirs.classifier.weight.data = torch.eye(E)
    mask, weights, _ = theirs(torch.tensor(LOGITS))
    expected = (mask * weights).detach().numpy()
    assert (expected.sum(-1) == 0).any() == (capacity == 2)
    found = FirstChoice(capacity).choose(jnp.asarray(LOGITS), None)
    np.testing.assert_allclose(by_expert(found), expected, rtol=1e-6)


@pytest.mark.parametrize("best_first", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("limit", [{"fraction": 0.25}, {"fraction": None, "capacity": 7}, {"fraction": 1.0}])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_both_choices_of_all_rows_find_the_places_that_they_find_in_transformers(
    mask: np.ndarray | None, limit: dict[str, Any], renormalize: bool, best_first: bool
):
    ours = TwoChoices(**{"capacity": 64, **limit}, best_first=best_first, renormalize=renormalize)
    config = NllbMoeConfig(
        d_model=E,
        num_experts=E,
        expert_capacity=ours.capacity,
        moe_eval_capacity_token_fraction=-1.0 if ours.fraction is None else ours.fraction,
        batch_prioritized_routing=best_first,
        normalize_router_prob_before_dropping=not renormalize,
    )
    padding: Any = None if mask is None else torch.tensor(1 - mask).reshape(-1)
    rows = torch.tensor(LOGITS).reshape(-1, E)
    _, expected = NllbMoeTop2Router(config).eval().route_tokens(rows, padding_mask=padding)
    found = by_expert(ours.choose(jnp.asarray(LOGITS), None if mask is None else jnp.asarray(mask) > 0))
    assert ((found > 0).sum() < (2 * MASK.sum() if mask is not None else 2 * B * T)) == (limit != {"fraction": 1.0})
    np.testing.assert_allclose(found.reshape(-1, E), expected.numpy(), rtol=1e-6)


def test_padding_takes_no_place():
    valid = jnp.asarray(MASK) > 0
    found = by_expert(FirstChoice(2).choose(jnp.asarray(LOGITS), valid))
    for row in range(B):
        alone = by_expert(FirstChoice(2).choose(jnp.asarray(LOGITS[row : row + 1, 2 * row :]), None))
        np.testing.assert_array_equal(found[row, 2 * row :], alone[0])
    assert not found[~np.asarray(valid)].any()


def test_two_of_one_expert_are_refused():
    with pytest.raises(ConfigError, match="two of 1 experts cannot be chosen"):
        MoE(1, MLP(8, "relu"), TwoChoices(64))
