"""Mamba 2's recurrence in chunks against its definition, and the memory it takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easydel.layers.mamba2 import Mamba2
from easydel.ops.recurrence import CHUNK
from easydel.ops.ssd import state_space_dual, token_by_token

ORDER = ("x", "step", "a", "b", "c", "state")


def inputs(length: int, states: int = 5, channels: int = 7) -> dict[str, np.ndarray]:
    """Two groups of three heads; some steps are zero, as those of padding."""
    rng = np.random.default_rng(length)
    shapes = {"x": (2, length, 2, 3, channels), "b": (2, length, 2, states), "c": (2, length, 2, states)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["step"] = rng.uniform(0.01, 2, (2, length, 2, 3)) * (rng.uniform(size=(2, length, 1, 1)) < 0.9)
    arrays["a"] = -rng.uniform(0.01, 3, (2, 3))
    arrays["state"] = rng.normal(size=(2, 2, 3, channels, states))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def chunked(g: Any) -> Any:
    return state_space_dual(*(g[name] for name in ORDER))


def looped(g: Any) -> Any:
    return token_by_token(*(g[name] for name in ("a", "state", "x", "step", "b", "c")))


def defined(x: Any, step: Any, a: Any, b: Any, c: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    state, outputs = state.astype(np.float64), []
    for t in range(x.shape[1]):
        made = np.einsum("bgrp,bgr,bgs->bgrps", x[:, t], step[:, t], b[:, t])
        state = np.exp(step[:, t] * a)[..., None, None] * state + made
        outputs.append(np.einsum("bgrps,bgs->bgrp", state, c[:, t]))
    return np.stack(outputs, axis=1), state


@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_chunks_and_tokens_one_by_one_equal_the_definition(length: int):
    given = inputs(length)
    expected_y, expected_state = defined(**given)
    for form in (chunked, looped):
        y, state = jax.jit(form)(given)
        np.testing.assert_allclose(y, expected_y, atol=1e-4)
        np.testing.assert_allclose(state, expected_state, atol=1e-4)


def test_gradients_through_chunks_equal_those_of_one_loop():
    given = inputs(CHUNK + 9)

    def loss(form: Any) -> Any:
        def summed(g: Any) -> jax.Array:
            y, state = form(g)
            return jnp.sum(jnp.sin(y)) + jnp.sum(state)

        return jax.jit(jax.grad(summed))

    ours, expected = loss(chunked)(given), loss(looped)(given)
    for name, gradient in expected.items():
        np.testing.assert_allclose(ours[name], gradient, atol=1e-4 * np.abs(gradient).max(), err_msg=name)


def test_decays_that_no_float_holds_leave_no_nan():
    given = {name: jnp.asarray(array) for name, array in inputs(CHUNK + 3).items()} | {"a": jnp.full((2, 3), -1e4)}
    gradients = jax.jit(jax.grad(lambda g: jnp.sum(chunked(g)[0])))(given)
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in gradients.values())


def test_memory_grows_linearly_and_holds_neither_all_states_nor_all_pairs_of_tokens():
    def held(length: int, function: Any) -> int:
        given = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in inputs(length, 32, 8).items()}
        return jax.jit(function).lower(given).compile().memory_analysis().temp_size_in_bytes

    def loss(g: Any) -> jax.Array:
        return jnp.sum(chunked(g)[0])

    length = 64 * CHUNK
    states = inputs(1, 32, 8)["state"].nbytes * length
    for function in (loss, jax.grad(loss)):
        assert held(length, function) < states / 4
        assert held(2 * length, function) < 2.2 * held(length, function)


def test_cache_does_not_grow_with_the_length_and_keeps_its_state_in_float32():
    mixer = Mamba2(heads=6, head_dim=4, groups=2, states=5, width=4, act="silu")
    cache = mixer.cache(3, 10_000, jnp.dtype(jnp.bfloat16))
    assert {name: (leaf.array.shape, leaf.array.dtype) for name, leaf in cache.items()} == {
        "x": ((3, 3, 24), jnp.bfloat16),
        "b": ((3, 3, 10), jnp.bfloat16),
        "c": ((3, 3, 10), jnp.bfloat16),
        "ssm": ((3, 6, 4, 5), jnp.float32),
    }
    assert cache["ssm"].axes == ("batch", "mlp", None, None)
    assert mixer.rewinds(100, 50) == 0
