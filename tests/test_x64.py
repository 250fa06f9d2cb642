"""With `jax_enable_x64`, models compute the same, in the same types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, all_cases
from cases.llama import llama
from trained import random_model, small

from easydel.generate import PromptCache
from easydel.train import init_state, step
from easydel.tree import flatten

IDS = np.random.default_rng(0).integers(3, 90, (1, 9))
LAYERS = {"llama-plain": 1, "mamba-plain": 1, "deepseek_v3-groups": 2}
FAMILIES = [case for case in all_cases() if case.name in LAYERS]


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_generation_is_the_same(case: Case):
    assert len(FAMILIES) == len(LAYERS)
    layers = LAYERS[case.name]
    expected = random_model(case, layers=layers)[0].generate(IDS, max_new_tokens=4).sequences
    with jax.enable_x64(True):
        model, kept = random_model(case, layers=layers)[0], PromptCache()
        parts = {"prefill_chunk_size": 4, "no_repeat_ngram_size": 5, "prompt_cache": kept}
        np.testing.assert_array_equal(model.generate(IDS, max_new_tokens=4, **parts).sequences, expected)
        sampled = model.generate(IDS, max_new_tokens=4, do_sample=True, top_k=3, prompt_cache=kept).sequences
        assert sampled.shape == expected.shape


def test_training_is_in_float32():
    optimizer, batch = optax.adam(1e-3), {"input_ids": np.repeat(IDS, 2, axis=0)}
    results = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            model, params = random_model(small(llama("x64"), num_hidden_layers=1))
            state = init_state(model, params, optimizer)
            state, metrics = step(model, optimizer, accumulate=2, clip=1.0)(state, batch)
            leaves = [
                metrics.loss,
                metrics.objective,
                metrics.grad_norm,
                metrics.tokens,
                *flatten(state.trained).values(),
            ]
            assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
            results.append([np.asarray(leaf) for leaf in leaves])
    for ours, wide in zip(*results, strict=True):
        np.testing.assert_allclose(ours, wide, rtol=1e-6, atol=1e-7)
