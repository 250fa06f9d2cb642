"""Measures the overhead of a compiled call beside its computation: of the model, of `apply`, and of `generate`.

    python benchmarks/calls.py [--repeat 300] [--output out.json] [--force]

The model has as many arrays as SmolLM2-135M, 272, and so little in them that computing does not hide the overhead. The
overhead is the time of a call minus that of the same program compiled ahead and called with a flat list of arrays right
after it; for `generate`, the program of the first token. A busy machine is refused unless --force.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, quiet_machine, show, write
from train import SHAPES, make_model

SHAPE, PROMPT = "narrow", 16
NOTE = "A model of 272 small arrays. Alone: the same program, compiled ahead, called with a flat list of arrays."


@dataclass(frozen=True)
class Case:
    """A call, the same computation `alone`, and the overhead in milliseconds that the call may have at most."""

    call: Callable[[], Any]
    alone: Callable[[], Any]
    at_most: float


def make_cases(directory: str) -> dict[str, Case]:
    import jax

    from easydel import AutoEasyDeLModelForCausalLM
    from easydel.generate import _prepared
    from easydel.generate.programs import prefill
    from easydel.module import forward

    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    ids = np.random.default_rng(0).integers(3, SHAPES[SHAPE]["vocab_size"], (1, PROMPT))
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "eos_token_id": None}
    run = _prepared(model, ids, None, None, 0, None, options)
    leaves, tree = jax.tree.flatten(params)

    def alone(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Returns `function(model, params, *arguments)`, compiled for a list of arrays."""
        flat = jax.jit(lambda leaves, *given: function(model, jax.tree.unflatten(tree, leaves), *given))
        return partial(flat.lower(leaves, *arguments).compile(), leaves, *arguments)

    tokens = jax.numpy.asarray(ids)
    logits = alone(forward, {"input_ids": tokens})
    return {
        "model(ids)": Case(partial(model, tokens), logits, 2.0),
        "model.apply(params, ids)": Case(partial(model.apply, params, tokens), logits, 0.5),
        "jax.jit(model.apply)(params, ids)": Case(partial(jax.jit(model.apply), params, tokens), logits, 0.5),
        "model.generate(ids, max_new_tokens=1)": Case(
            partial(model.generate, ids, **options), alone(prefill, run.prompt, None, run.rules), 20.0
        ),
    }


def seconds(call: Callable[[], Any]) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(cases: dict[str, Case], repeat: int) -> dict[str, list[tuple[float, float]]]:
    """Returns for each case the seconds of its call and of its program alone, in turn, after a round for compiling."""
    rounds = [[(seconds(case.call), seconds(case.alone)) for case in cases.values()] for _ in range(repeat + 1)]
    return dict(zip(cases, map(list, zip(*rounds[1:], strict=True)), strict=True))


def table(found: dict[str, list[tuple[float, float]]], cases: dict[str, Case]) -> Measured:
    columns = ("call", "ms", "program alone, ms", "overhead ms, median", "first quartile", "third", "at most")
    rows, bars = [], {}
    for name, pairs in found.items():
        overheads = [1e3 * (call - alone) for call, alone in pairs]
        first, bars[name], third = statistics.quantiles(overheads, n=4)
        both = [1e3 * statistics.median(times) for times in zip(*pairs, strict=True)]
        rows.append((name, *(f"{cell:.2f}" for cell in (*both, bars[name], first, third)), str(cases[name].at_most)))
    return Measured("What a call costs beside computing", columns, rows, bars, "milliseconds", [NOTE])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=300)
    parser.add_argument("--output", type=Path, help="write what was measured to this JSON file")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    arguments = parser.parse_args()
    machine = quiet_machine(force=arguments.force)
    with tempfile.TemporaryDirectory() as directory:
        make_model(directory, SHAPE)
        cases = make_cases(directory)
        found = measure(cases, arguments.repeat)
    measured = table(found, cases)
    show(measured)
    if arguments.output:
        write(arguments.output, measured, machine, shape=SHAPE, seconds=found)


if __name__ == "__main__":
    main()
