"""The gated delta rule against its definition, and the memory it takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easydel.layers.delta import DeltaNet
from easydel.layers.lightning import Lightning
from easydel.layers.norm import RMSNorm
from easydel.layers.part import Part
from easydel.layers.short_conv import ShortConv
from easydel.ops.delta import CHUNK, CHUNK_OF_CHANNELS, Tokens, delta_rule, token_by_token
from easydel.ops.triangular import unit_lower_inverse

FORMS = pytest.mark.parametrize("form", ["heads", "channels", "adds"])


def inputs(form: str, length: int, heads: int = 3, key: int = 5, value: int = 7) -> tuple[Tokens, np.ndarray]:
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=(2, length, heads, size)) for size in (key, key, value))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay = -rng.uniform(0, 2, (2, length, heads, key if form == "channels" else 1))
    decay[:, :: CHUNK_OF_CHANNELS + 3] = -60  # whoever divides by what is left of that, fails
    beta = None if form == "adds" else rng.uniform(0, 2, (2, length, heads))
    arrays: Any = (q, k, v, decay, beta)
    state = rng.normal(size=(2, heads, key, value))
    return jax.tree.map(lambda part: part.astype(np.float32), (Tokens(*arrays), state))


def defined(tokens: Tokens, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, k, v, decay, beta = tokens
    state, outputs = state.astype(np.float64), []
    for t in range(q.shape[1]):
        state = np.exp(decay[:, t, ..., None]) * state
        update = v[:, t]
        if beta is not None:
            update = beta[:, t, :, None] * (v[:, t] - np.einsum("bncv,bnc->bnv", state, k[:, t]))
        state = state + k[:, t, ..., None] * update[:, :, None]
        outputs.append(np.einsum("bncv,bnc->bnv", state, q[:, t]))
    return np.stack(outputs, axis=1), state


@FORMS
@pytest.mark.parametrize("length", [1, 2, CHUNK, 2 * CHUNK + 7])
def test_delta_rule_equals_its_definition(form: str, length: int):
    given = inputs(form, length)
    expected = defined(*given)
    for rule in (delta_rule, token_by_token):
        for ours, other in zip(jax.jit(rule)(*given), expected, strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-4)


@FORMS
def test_gradients_through_chunks_equal_those_of_single_tokens(form: str):
    given = inputs(form, CHUNK + 9)

    def loss(rule: Any, given: Any) -> jax.Array:
        out, state = rule(*given)
        return jnp.sum(jnp.sin(out)) + jnp.sum(state)

    ours, expected = (jax.jit(jax.grad(partial(loss, rule)))(given) for rule in (delta_rule, token_by_token))
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max())


@FORMS
def test_tokens_that_do_nothing_leave_the_state_as_it_is(form: str):
    tokens, state = inputs(form, 3 * CHUNK_OF_CHANNELS)
    idle = tokens._replace(log_decay_BTNA=0 * tokens.log_decay_BTNA, k_BTNC=0 * tokens.k_BTNC)
    np.testing.assert_array_equal(jax.jit(delta_rule)(idle, state)[1], state)


@FORMS
def test_memory_of_a_sequence_grows_as_its_inputs_do(form: str):
    def loss(given: Any) -> jax.Array:
        return jnp.sum(delta_rule(*given)[0])

    def used(length: int, function: Any) -> int:
        given = jax.tree.map(jnp.asarray, inputs(form, length, key=16, value=24))
        analysis: Any = jax.jit(function).lower(given).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    for function in (loss, jax.grad(loss)):
        short, long = (used(length * CHUNK, function) for length in (16, 64))
        assert long < 4.5 * short


NORM = RMSNorm(1e-5)
MIXERS = pytest.mark.parametrize(
    "mixer",
    [
        DeltaNet(4, 2, 6, 10, 4, "silu", NORM),
        DeltaNet(4, 4, 6, 6, 3, "silu", NORM, by_channel=True, rank=5),
        Lightning(4, 6, "silu", NORM, 0.7),
        ShortConv(16, 3),
    ],
    ids=["delta", "channels", "lightning", "convolution"],
)


@MIXERS
def test_what_mixers_carry_does_not_grow_and_cannot_be_rewound(mixer: Part):
    short, long = (mixer.cache(2, length, jnp.dtype(jnp.bfloat16)) for length in (10, 10_000))
    assert jax.tree.map(jnp.shape, short) == jax.tree.map(jnp.shape, long)
    assert mixer.rewinds(10_000, 100) == 0
    if "state" in short:
        assert short["state"].array.dtype == jnp.float32
        assert short["state"].axes == ("batch", "head", None, None)


@MIXERS
def test_rows_of_several_documents_would_mix_them(mixer: Part):
    assert mixer.carries(4)


@pytest.mark.parametrize("length", [1, 2, 13, 64])
def test_triangular_matrices_are_inverted_as_exactly_as_by_substitution(length: int):
    """Equal keys are the worst: powers of such a matrix overflow, and its inverse is small."""
    random = np.random.default_rng(length).normal(size=(2, 3, length, length)).astype(np.float32) / 4
    for given in (random, np.ones_like(random)):
        found = np.asarray(unit_lower_inverse(jnp.asarray(given)), np.float64)
        matrix = np.tril(given.astype(np.float64), -1) + np.eye(length)
        np.testing.assert_allclose(found, np.linalg.inv(matrix), atol=1e-5 * np.abs(np.linalg.inv(matrix)).max())
