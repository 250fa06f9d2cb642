"""Compares our training step with one of PyTorch and transformers: AdamW, float32, the same random model and tokens.

    python benchmarks/train.py [--turns 5] [--batch 4] [--length 512] [--output out.json]

Each engine runs in a process of its own, and they take turns, so that a slower minute of the machine hits both. In a
turn an engine makes four steps, and the median of the last three is its time: real trainings make many steps in a row,
and the first one after a pause gets memory that the other engine has just given back, which costs both of them 1 to 3
seconds; single steps vary by a tenth. The losses of all steps are compared. A busy machine is refused unless --force:
a neighbour makes threads wait for each other, which slows PyTorch more than us and would flatter us.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, Worker, quiet_machine, show, write

SHAPES = {  # SmolLM2-135M, a model with as many arrays and little in them, and one to try the scripts with
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    "narrow": {"vocab_size": 257, "hidden_size": 72, "intermediate_size": 144, "num_hidden_layers": 30},
    "tiny": {"vocab_size": 997, "hidden_size": 144, "intermediate_size": 256, "num_hidden_layers": 2},
}
SHARED = {"num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
TIMED = 3  # steps of a turn, after one that is not timed
RATE, BETAS, DECAY = 1e-4, (0.9, 0.95), 0.1
# The claims: ours is at least as fast in every pair, has the same losses, and stays within this memory for temporaries.
LEAST_RATIO, LOSS_TOLERANCE, TEMPORARIES = 1.0, 1e-4, 1.9e9
Step = Callable[[np.ndarray], float]


def make_model(directory: str, shape: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **SHARED)).save_pretrained(directory)


def torch_step(directory: str, ids: np.ndarray) -> tuple[Step, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)

    def step(ids: np.ndarray) -> float:
        optimizer.zero_grad()
        tokens = torch.tensor(ids)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, {"version": torch.__version__}


def our_step(directory: str, ids: np.ndarray) -> tuple[Step, dict[str, Any]]:
    import jax
    import optax

    from easydel import AutoEasyDeLModelForCausalLM
    from easydel.train import init_state, step

    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        directory, scan_layers=True, remat="save_attention_and_mlp", donatable=True
    )
    optimizer = optax.adamw(RATE, *BETAS, weight_decay=DECAY)
    state, run = init_state(model, params, optimizer), step(model, optimizer)
    memory = run.lower(state, {"input_ids": ids}).compile().memory_analysis()

    def advance(ids: np.ndarray) -> float:
        nonlocal state
        state, metrics = run(state, {"input_ids": ids})
        return float(metrics.loss)

    facts = {
        "version": jax.__version__,
        "temporaries": memory.temp_size_in_bytes,
        "limit": products(model.num_params(), ids.size) / flops_per_second(),
    }
    return advance, facts


def products(parameters: int, tokens: int) -> float:
    """Returns floating-point operations of a step in products with parameters: 2 forward and 4 backward for each."""
    return 6.0 * parameters * tokens


def flops_per_second(size: int = 3072) -> float:
    """Returns the rate of a large float32 product, the best of three."""
    import jax

    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


ENGINES = {"torch": torch_step, "easydel": our_step}


def serve(engine: str, directory: str, batch: int, length: int, shape: str) -> None:
    """Makes a step for each line on stdin, and answers with its seconds and its loss."""
    batches = random_batches(batch, length, SHAPES[shape]["vocab_size"])
    first = next(batches)
    step, facts = ENGINES[engine](directory, first)
    print(json.dumps(facts), flush=True)
    for ids in chain([first], batches):
        if not sys.stdin.readline():
            return
        start = time.perf_counter()
        loss = step(ids)
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss}), flush=True)


def random_batches(batch: int, length: int, vocabulary: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, vocabulary, (batch, length))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns facts and steps of each engine."""
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, __file__, "--make", folder, "--shape", arguments.shape]
        subprocess.run(make, check=True)
        sizes = ["--batch", str(arguments.batch), "--length", str(arguments.length), "--shape", arguments.shape]
        engines = {name: Worker(__file__, "--serve", name, "--make", folder, *sizes) for name in ENGINES}
        steps: dict[str, list[Any]] = {name: [engine.ask("step")] for name, engine in engines.items()}
        for _ in range(arguments.turns):
            for name, engine in engines.items():
                steps[name] += [engine.ask("step") for _ in range(1 + TIMED)]
        for engine in engines.values():
            engine.close()
    return {name: {**engines[name].facts, "steps": steps[name]} for name in engines}


def timed(result: dict[str, Any]) -> list[float]:
    """Returns the seconds of a step in each turn, after the step that compiled."""
    seconds = [step["seconds"] for step in result["steps"][1:]]
    turns = [seconds[start : start + 1 + TIMED] for start in range(0, len(seconds), 1 + TIMED)]
    return [statistics.median(turn[1:]) for turn in turns]


def summary(results: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = (timed(results[name]) for name in ("easydel", "torch"))
    pairs = zip(results["easydel"]["steps"], results["torch"]["steps"], strict=True)
    return {
        "ratios": [their / our for our, their in zip(ours, theirs, strict=True)],
        "of_limit": results["easydel"]["limit"] / statistics.median(ours),
        "loss_difference": max(abs(our["loss"] - their["loss"]) / their["loss"] for our, their in pairs),
        "temporaries": results["easydel"]["temporaries"],
    }


def table(results: dict[str, Any], found: dict[str, Any], title: str) -> Measured:
    columns = ("engine", "seconds, median", "min", "max", "x torch, median", "min")
    rows, bars = [], {}
    for name, result in results.items():
        seconds = timed(result)
        ratios = found["ratios"] if name == "easydel" else [1.0]
        cells = [f"{f(seconds):.2f}" for f in (statistics.median, min, max)]
        rows.append((name, *cells, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}"))
        bars[name] = statistics.median(ratios)
    note = (
        f"Losses differ by {found['loss_difference']:.1e} (at most {LOSS_TOLERANCE}), temporaries "
        f"{found['temporaries'] / 1e9:.2f} GB (at most {TEMPORARIES / 1e9}), {found['of_limit']:.0%} of the speed of a "
        f"large product; to show: at least {LEAST_RATIO} x torch in every pair."
    )
    return Measured(title, columns, rows, bars, "speed / torch's", [note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each engine")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--output", type=Path, help="write what was measured as JSON")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.make, arguments.batch, arguments.length, arguments.shape)
        return
    if arguments.make:
        make_model(arguments.make, arguments.shape)
        return
    machine = quiet_machine(force=arguments.force)
    results = measure(arguments)
    found = summary(results)
    measured = table(
        results, found, f"A training step of {arguments.batch} x {arguments.length} tokens, {arguments.shape}"
    )
    show(measured)
    if arguments.output:
        write(arguments.output, measured, machine, summary=found, engines=results)
    if found["loss_difference"] > LOSS_TOLERANCE or found["temporaries"] > TEMPORARIES:
        raise SystemExit("the losses differ, or too much memory is used")


if __name__ == "__main__":
    main()
