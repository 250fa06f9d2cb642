"""Engines that generate text with the same random model, each in a process of its own, asked in turn.

What decode.py and prefill.py share. A slower minute of the machine hits the engines alike, since one answers right
after the other, and every ratio is of such a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from train import SHAPES, make_model

Generate = Callable[[np.ndarray, int], np.ndarray]
ENGINES = ("torch", "easydel")


def torch_engine(directory: str) -> tuple[Generate, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        tokens = torch.tensor(ids)
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(tokens)
        return model.generate(tokens, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **options).numpy()

    return generate, {"version": torch.__version__}


def our_engine(directory: str) -> tuple[Generate, dict[str, Any]]:
    import jax

    from easydel import AutoEasyDeLModelForCausalLM

    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def generate(ids: np.ndarray, new: int) -> np.ndarray:
        return model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None).sequences

    return generate, {"version": jax.__version__, "bytes": size, "parameters": model.num_params()}


def serve(engine: str, directory: str, vocabulary: int) -> None:
    """For each line on stdin, (batch, length, new tokens), answer with seconds and the new tokens."""
    generate, facts = {"torch": torch_engine, "easydel": our_engine}[engine](directory)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        batch, length, new = json.loads(line)
        ids = np.random.default_rng(length).integers(3, vocabulary, (batch, length))
        start = time.perf_counter()
        tokens = generate(ids, new)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": tokens[:, length:].tolist()}), flush=True)


class Engine:
    """A process that generates when it is asked to."""

    def __init__(self, name: str, directory: str, shape: str):
        command = [sys.executable, __file__, name, directory, str(SHAPES[shape]["vocab_size"])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def generate(self, batch: int, length: int, new: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps((batch, length, new))}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with status {self.process.wait()}")
        return json.loads(line)


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--output", type=Path, help="write what was measured to this JSON file")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    chosen = parser.parse_args()
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5 * cores and not chosen.force:
        raise SystemExit(f"the load average is {load:.1f} on {cores} cores: ratios would mean little (--force)")
    return chosen


Ask = Callable[[Engine], tuple[float, Any]]


def compare(chosen: argparse.Namespace, cases: dict[str, Ask]) -> tuple[dict[str, Any], dict[str, Any]]:
    """For each case the seconds of each engine, in turn, after one round that may compile; and facts about engines.

    A case asks an engine, and gives seconds and tokens. The engines have to agree on the tokens.
    """
    with tempfile.TemporaryDirectory() as directory:
        make_model(directory, chosen.shape)
        engines = {name: Engine(name, directory, chosen.shape) for name in ENGINES}
        results: dict[str, Any] = {}
        for case, ask in cases.items():
            tokens = [ask(engine)[1] for engine in engines.values()]
            rounds = [{name: ask(engine)[0] for name, engine in engines.items()} for _ in range(chosen.repeat)]
            results[case] = {"rounds": rounds, "same_tokens": tokens[0] == tokens[1]}
        for engine in engines.values():
            engine.close()
    return results, {name: engine.facts for name, engine in engines.items()}


def report(chosen: argparse.Namespace, title: str, results: dict[str, Any], facts: dict[str, Any]) -> None:
    """Print a table, and write JSON. Each result has `rounds`, `same_tokens`, and its `limit` in seconds."""
    from rich.console import Console
    from rich.table import Table

    headings = ("case", "torch ms", "ours ms", "torch / ours", "min", "max", "of the limit", "tokens")
    table = Table(*headings, title=title)
    for case, result in results.items():
        rounds = result["rounds"]
        ratios = sorted(one["torch"] / one["easydel"] for one in rounds)
        torch_ms, our_ms = (1e3 * statistics.median(one[name] for one in rounds) for name in ENGINES)
        result |= {"ratio": statistics.median(ratios), "ratios": ratios}
        cells = [torch_ms, our_ms, result["ratio"], ratios[0], ratios[-1]]
        share = f"{1e5 * result['limit'] / our_ms:.0f} %"
        table.add_row(case, *(f"{cell:.2f}" for cell in cells), share, "same" if result["same_tokens"] else "DIFFER")
    Console().print(table)
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "load": os.getloadavg()[0]}
    if chosen.output:
        written = {"machine": machine, "shape": chosen.shape, "engines": facts, "results": results}
        chosen.output.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
