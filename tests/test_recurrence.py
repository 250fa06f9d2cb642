"""The selective scan against its definition, and the memory it takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easydel.layers.mamba import Mamba
from easydel.ops import recurrence
from easydel.ops.gated_scan import gated_scan
from easydel.ops.recurrence import CHUNK, in_parallel, selective_scan, token_by_token


def inputs(length: int, states: int = 3, channels: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    shapes = {"x": (2, length, channels), "b": (2, length, states), "c": (2, length, states)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["step"] = rng.uniform(0.01, 2, (2, length, channels))
    arrays["a"] = -rng.uniform(0.1, 3, (states, channels))
    arrays["state"] = rng.normal(size=(2, states, channels))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def defined(x: Any, step: Any, a: Any, b: Any, c: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    state, outputs = state.astype(np.float64), []
    for t in range(x.shape[1]):
        state = np.exp(step[:, t, None] * a) * state + b[:, t, :, None] * (step[:, t] * x[:, t])[:, None]
        outputs.append(np.einsum("bsi,bs->bi", state, c[:, t]))
    return np.stack(outputs, axis=1), state


@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_scan_equals_its_definition(length: int):
    given = inputs(length)
    y, state = jax.jit(lambda g: selective_scan(g["x"], g["step"], g["a"], g["b"], g["c"], g["state"]))(given)
    expected_y, expected_state = defined(**given)
    np.testing.assert_allclose(y, expected_y, atol=1e-4)
    np.testing.assert_allclose(state, expected_state, atol=1e-4)


def test_parallel_and_sequential_chunks_agree():
    g = inputs(23)
    arguments = [g[name] for name in ("a", "state", "x", "step", "b", "c")]
    for ours, other in zip(token_by_token(*arguments), in_parallel(*arguments), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


def test_gradients_through_chunks_equal_those_of_one_loop():
    given = inputs(CHUNK + 9)

    def chunked(g: Any) -> jax.Array:
        y, state = selective_scan(g["x"], g["step"], g["a"], g["b"], g["c"], g["state"])
        return jnp.sum(jnp.sin(y)) + jnp.sum(state)

    def looped(g: Any) -> jax.Array:
        y, state = token_by_token(g["a"], g["state"], g["x"], g["step"], g["b"], g["c"])
        return jnp.sum(jnp.sin(y)) + jnp.sum(state)

    ours, expected = jax.jit(jax.grad(chunked))(given), jax.jit(jax.grad(looped))(given)
    for name, gradient in expected.items():
        np.testing.assert_allclose(ours[name], gradient, atol=1e-4 * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("chunk", [token_by_token, in_parallel])
def test_states_of_all_tokens_are_never_in_memory(chunk: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recurrence, "_chunk", lambda a, state, parts: chunk(a, state, *parts))
    length, channels, states = 64 * CHUNK, 24, 64
    given = jax.tree.map(jnp.asarray, inputs(length, states, channels))

    def loss(g: Any) -> jax.Array:
        return jnp.sum(selective_scan(g["x"], g["step"], g["a"], g["b"], g["c"], g["state"])[0])

    whole = given["x"].nbytes * states
    for function in (loss, jax.grad(loss)):
        assert jax.jit(function).lower(given).compile().memory_analysis().temp_size_in_bytes < whole / 2


def test_cache_does_not_grow_with_the_length_and_keeps_its_state_in_float32():
    cache = Mamba(8, 3, 4, 2, "silu").cache(2, 10_000, jnp.dtype(jnp.bfloat16))
    assert {name: (leaf.array.shape, leaf.array.dtype) for name, leaf in cache.items()} == {
        "conv": ((2, 3, 8), jnp.bfloat16),
        "ssm": ((2, 3, 8), jnp.float32),
    }


def test_gated_scan_and_its_gradients_equal_those_of_a_loop():
    rng = np.random.default_rng(0)
    shape = (2, 2 * CHUNK + 7, 5)
    given = rng.normal(size=shape), -rng.uniform(0, 3, shape), rng.normal(size=(2, 5))
    given = tuple(array.astype(np.float32) for array in given)

    def looped(x: jax.Array, decay: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(state: jax.Array, token: Any) -> tuple[jax.Array, jax.Array]:
            state = jnp.exp(token[1]) * state + token[0]
            return state, state

        state, states = jax.lax.scan(one, state, (x.swapaxes(0, 1), decay.swapaxes(0, 1)))
        return states.swapaxes(0, 1), state

    def loss(form: Any) -> Any:
        def summed(*given: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            states, last = form(*given)
            return jnp.sum(jnp.sin(states)) + jnp.sum(last), (states, last)

        return jax.jit(jax.grad(summed, (0, 1, 2), has_aux=True))

    for ours, expected in zip(*(jax.tree.leaves(loss(form)(*given)) for form in (gated_scan, looped)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
