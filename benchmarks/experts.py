"""Measures products with the chosen experts' matrices, against `jax.lax.ragged_dot` and against using every expert."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.ragged import product_native, ragged_dot

EXPERTS, WIDE, NARROW = 16, 1792, 512


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the time of the best of five calls, compiled before."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    kernel = jax.random.normal(jax.random.key(0), (EXPERTS, WIDE, NARROW)) * 0.03
    print(f"{EXPERTS} experts of {NARROW} x {WIDE} on {jax.default_backend()}; ratios are times theirs / ours")
    for rows in (2, 8, 64, 512):
        x = jax.random.normal(jax.random.key(1), (rows, NARROW))
        sizes = jnp.bincount(jax.random.randint(jax.random.key(2), (rows,), 0, EXPERTS), length=EXPERTS)
        ours = milliseconds(ragged_dot, x, kernel, sizes)
        native = milliseconds(lambda *given: product_native(*given, contracted=2), x, kernel, sizes)
        dense = milliseconds(lambda x, kernel: jnp.einsum("mi,eoi->emo", x, kernel), x, kernel)
        print(f"{rows:4} rows: {ours:8.2f} ms, ragged_dot {native / ours:6.1f}, every expert {dense / ours:6.1f}")


if __name__ == "__main__":
    main()
