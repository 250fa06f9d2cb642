"""RWKV's averages and xLSTM's memory: all of a text at once is the same as token by token, also beyond a chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from easydel.ops.mlstm import Gated, matrix_memory
from easydel.ops.recurrence import CHUNK
from easydel.ops.wkv import in_parallel, token_by_token, weighted_average

LENGTH = CHUNK + 6


def test_averages_in_parallel_equal_those_token_by_token():
    rng = np.random.default_rng(0)
    k, v = (rng.normal(size=(2, LENGTH, 5)).astype(np.float32) * scale for scale in (9, 1))
    decay = -rng.uniform(0, 2, k.shape).astype(np.float32)
    first = rng.normal(size=5).astype(np.float32)
    sums = (jnp.ones((2, 5)), jnp.full((2, 5), 2.0), jnp.zeros((2, 5)))
    expected = token_by_token(first, sums, k, v, decay)
    for found in (in_parallel(first, sums, k, v, decay), weighted_average(k, v, decay, first, sums)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_memory_in_chunks_equals_that_of_single_tokens():
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, LENGTH, 3, size)).astype(np.float32) for size in (4, 4, 5))
    gates = rng.normal(size=(2, LENGTH, 3)).astype(np.float32), -rng.uniform(0, 2, (2, LENGTH, 3)).astype(np.float32)
    tokens = Gated(q, k, v, *gates)
    start = memory = (jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)))
    step, outputs = jax.jit(lambda token, memory: matrix_memory(token, memory, 1e-2)), []
    for t in range(LENGTH):
        y, memory = step(jax.tree.map(lambda part, t=t: part[:, t : t + 1], tokens), memory)
        outputs.append(y)
    expected = (jnp.concatenate(outputs, axis=1), memory)
    found = matrix_memory(tokens, start, 1e-2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
