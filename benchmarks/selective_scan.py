"""Measures time and memory of Mamba's recurrence, against one parallel scan over the whole sequence."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.recurrence import in_parallel, selective_scan

LENGTH, CHANNELS, STATES = 2048, 1536, 16


def measured(function: Any, *arguments: jax.Array) -> tuple[float, float]:
    """Returns milliseconds (the best of three) and megabytes of temporary memory."""
    compiled = jax.jit(function).lower(*arguments).compile()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e3, compiled.memory_analysis().temp_size_in_bytes / 1e6


def whole(x: Any, step: Any, a: Any, b: Any, c: Any, state: Any) -> Any:
    return in_parallel(a, state, x, step, b, c)


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    x, step = (jax.random.normal(key, (1, LENGTH, CHANNELS)) for key in keys[:2])
    b, c = (jax.random.normal(key, (1, LENGTH, STATES)) for key in keys[2:4])
    a = -jnp.exp(jax.random.normal(keys[4], (STATES, CHANNELS)))
    given = (x, jax.nn.softplus(step), a, b, c, jnp.zeros((1, STATES, CHANNELS)))
    (ours, own_memory), (theirs, memory) = measured(selective_scan, *given), measured(whole, *given)
    print(f"{LENGTH} tokens, {CHANNELS} channels of {STATES} states on {jax.default_backend()}")
    print(f"ours {ours:.1f} ms, {own_memory:.0f} MB; one scan: {theirs / ours:.1f} times the time, {memory:.0f} MB")


if __name__ == "__main__":
    main()
