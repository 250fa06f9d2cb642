"""Measures reading a prompt up to its first token: ours, PyTorch and transformers, llama.cpp if installed, in turn.

    python benchmarks/prefill.py [--repeat 5] [--shape 135m|tiny] [--output out.json] [--force]

A random model of SmolLM2-135M's shape, float32. The limit is the time of all products with parameters (except the
embedding and the head: only one position needs logits) at the measured rate of a large matrix product. A busy machine
is refused unless --force: a neighbour slows the others more than us.
"""

from __future__ import annotations

from typing import Any

from measured import Worker
from train import SHAPES, flops_per_second
from turns import arguments, compare, report, started

LENGTHS = {512: 1.05, 2048: 0.95}  # tokens -> the speed to reach, relative to torch


def first_token_seconds(engine: Worker, length: int) -> tuple[float, Any]:
    answer = engine.ask((1, length, 1))
    return answer["seconds"], answer["tokens"]


def main() -> None:
    chosen = arguments(__doc__)
    rate = flops_per_second()
    cases = {
        f"{length} tokens": lambda engine, length=length: first_token_seconds(engine, length) for length in LENGTHS
    }
    with started(chosen.shape) as engines:
        results = compare(engines, cases, chosen.repeat)
    shape = SHAPES[chosen.shape]
    inner = engines["easydel"].facts["parameters"] - shape["vocab_size"] * shape["hidden_size"]
    for (length, least), result in zip(LENGTHS.items(), results.values(), strict=True):
        result |= {"limit": 2 * inner * length / rate, "least": least}
    note = f"The limit: products with all parameters, at {rate / 1e9:.0f} GFLOP/s."
    report(chosen, "Reading a prompt, to its first token", [note], results, engines)


if __name__ == "__main__":
    main()
