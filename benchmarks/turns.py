"""Engines that generate text with the same random model, each in a process of its own, asked in turn.

What decode.py and prefill.py share. A slower minute of the machine hits the engines alike, since one answers right
after the other, and every ratio is of such a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, Worker, quiet_machine, show, write
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


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--output", type=Path, help="write what was measured to this JSON file")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    chosen = parser.parse_args()
    chosen.machine = quiet_machine(force=chosen.force)
    return chosen


Ask = Callable[[Worker], tuple[float, Any]]


def compare(chosen: argparse.Namespace, cases: dict[str, Ask]) -> tuple[dict[str, Any], dict[str, Any]]:
    """For each case the seconds of each engine, in turn, after one round that may compile; and facts about engines.

    A case asks an engine, and gives seconds and tokens. The engines have to agree on the tokens.
    """
    with tempfile.TemporaryDirectory() as directory:
        make_model(directory, chosen.shape)
        vocabulary = str(SHAPES[chosen.shape]["vocab_size"])
        engines = {name: Worker(__file__, name, directory, vocabulary) for name in ENGINES}
        results: dict[str, Any] = {}
        for case, ask in cases.items():
            tokens = [ask(engine)[1] for engine in engines.values()]
            rounds = [{name: ask(engine)[0] for name, engine in engines.items()} for _ in range(chosen.repeat)]
            results[case] = {"rounds": rounds, "same_tokens": tokens[0] == tokens[1]}
        for engine in engines.values():
            engine.close()
    return results, {name: engine.facts for name, engine in engines.items()}


def report(chosen: argparse.Namespace, title: str, note: str, results: dict[str, Any], facts: dict[str, Any]) -> None:
    """Print a table, and write JSON. Each result has `rounds`, `same_tokens`, its `limit` in seconds, and `least`."""
    columns = ("case", "torch ms", "ours ms", "torch / ours", "min", "max", "at least", "of the limit", "tokens")
    rows, bars = [], {}
    for case, result in results.items():
        rounds = result["rounds"]
        ratios = [one["torch"] / one["easydel"] for one in rounds]
        torch_ms, our_ms = (1e3 * statistics.median(one[name] for one in rounds) for name in ENGINES)
        bars[case] = statistics.median(ratios)
        cells = [torch_ms, our_ms, bars[case], min(ratios), max(ratios)]
        share = f"{1e5 * result['limit'] / our_ms:.0f} %"
        same = "same" if result["same_tokens"] else "DIFFER"
        rows.append((case, *(f"{cell:.2f}" for cell in cells), str(result["least"]), share, same))
    measured = Measured(title, columns, rows, bars, "speed / torch's", [note])
    show(measured)
    if chosen.output:
        write(chosen.output, measured, chosen.machine, shape=chosen.shape, engines=facts, results=results)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
