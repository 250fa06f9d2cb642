"""Measures a step of greedy decoding: ours, PyTorch and transformers, llama.cpp if installed, in turn, float32.

    python benchmarks/decode.py [--repeat 5] [--shape 135m|tiny] [--output out.json] [--force]

A random model of SmolLM2-135M's shape continues a prompt of 16 tokens. A step's time is that of 65 new tokens less that
of one, divided by 64. The limit is the time to read all parameters once, at the measured rate of a product of a large
matrix with a vector. Our step is also measured in a cache that a longer prompt left, where the same tokens are in the
first of many slots. A busy machine is refused unless --force: a neighbour slows the others more than us.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from measured import Worker
from turns import arguments, compare, in_turn, ratios, report, spread, started

PROMPT, STEPS = 16, 64
BATCHES = {1: 1.2, 8: 1.25}  # batch size -> the speed to reach, relative to torch
SHORT, LONG, AT_MOST = "128", "2048", 1.1  # slots of two caches, and the largest ratio of a step in the longer one
LARGE = (16384, 8192)


def step_seconds(engine: Worker, batch: int, *slots: int) -> tuple[float, Any]:
    one, many = (engine.ask((batch, PROMPT, new, *slots)) for new in (1, 1 + STEPS))
    return (many["seconds"] - one["seconds"]) / STEPS, many["tokens"]


def bytes_per_second() -> float:
    """Returns the rate of reading a float32 matrix of 512 MiB in a product with a vector, the best of five."""
    import jax
    import jax.numpy as jnp

    matrix, vector = jnp.ones(LARGE), jnp.ones(LARGE[1:])
    product = jax.jit(lambda matrix, vector: matrix @ vector)
    product(matrix, vector).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, vector).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return matrix.nbytes / min(seconds)


def main() -> None:
    chosen = arguments(__doc__)
    rate = bytes_per_second()
    cases = {f"batch {batch}": lambda engine, batch=batch: step_seconds(engine, batch) for batch in BATCHES}
    with started(chosen.shape) as engines:
        results = compare(engines, cases, chosen.repeat)
        caches = {slots: partial(step_seconds, engines["easydel"], 1, int(slots)) for slots in (SHORT, LONG)}
        slots = in_turn(caches, chosen.repeat)
    for result, least in zip(results.values(), BATCHES.values(), strict=True):
        result |= {"limit": engines["easydel"].facts["bytes"] / rate, "least": least}
    notes = [f"The limit: reading all parameters once, at {rate / 1e9:.1f} GB/s.", slots_note(slots)]
    report(chosen, "A decoding step", notes, results, engines, slots=slots)


def slots_note(found: dict[str, Any]) -> str:
    median, least, most = spread(ratios(found, LONG, SHORT))
    tokens = "other tokens" if found["differ"] else "the same tokens"
    return (
        f"A short context in a cache of {LONG} slots against one of {SHORT}, ours: {median} x the time of a step (min "
        f"{least}, max {most}; at most {AT_MOST}), {tokens}."
    )


if __name__ == "__main__":
    main()
