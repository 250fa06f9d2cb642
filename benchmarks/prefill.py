"""How long reading a prompt takes, to its first token: ours against PyTorch and transformers, in turn, float32.

    python benchmarks/prefill.py [--repeat 5] [--shape 135m|tiny] [--output out.json] [--force]

A random model of SmolLM2-135M's shape. The limit is the time of all products with parameters (embedding and head left
out: only one position needs logits) at the rate of a large matrix product, which is measured too. A busy machine is
refused unless --force: a neighbour slows PyTorch more than us.
"""

from __future__ import annotations

from typing import Any

from train import SHAPES, flops_per_second
from turns import Engine, arguments, compare, report

LENGTHS = (512, 2048)


def first_token_seconds(engine: Engine, length: int) -> tuple[float, Any]:
    answer = engine.generate(1, length, 1)
    return answer["seconds"], answer["tokens"]


def main() -> None:
    chosen = arguments(__doc__)
    rate = flops_per_second()
    cases = {
        f"{length} tokens": lambda engine, length=length: first_token_seconds(engine, length) for length in LENGTHS
    }
    results, facts = compare(chosen, cases)
    shape = SHAPES[chosen.shape]
    inner = facts["easydel"]["parameters"] - shape["vocab_size"] * shape["hidden_size"]
    for length, result in zip(LENGTHS, results.values(), strict=True):
        result["limit"] = 2 * inner * length / rate
    report(chosen, f"Reading a prompt; products at {rate / 1e9:.0f} GFLOP/s are the limit", results, facts)


if __name__ == "__main__":
    main()
