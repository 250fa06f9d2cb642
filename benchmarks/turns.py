"""Engines that generate text with the same random model, each in a process of its own, asked in turn.

decode.py and prefill.py share it. A slower minute of the machine hits the engines alike, since one answers right after
the other, and every ratio is of such a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import llama
import numpy as np
from measured import Measured, Worker, quiet_machine, show, write
from train import SHAPES, make_model

Generate = Callable[..., np.ndarray]
Ask = Callable[[Worker], tuple[float, Any]]


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


def llama_engine(directory: str) -> tuple[Generate, dict[str, Any]]:
    model = llama.Llama(directory)
    return model.generate, {"version": model.cpp.__version__}


def our_engine(directory: str) -> tuple[Generate, dict[str, Any]]:
    import jax

    from easydel import AutoEasyDeLModelForCausalLM
    from easydel.generate import PromptCache

    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    greedy: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    kept = cache(lambda slots: PromptCache())

    def generate(ids: np.ndarray, new: int, slots: int | None = None) -> np.ndarray:
        """Generates; with `slots`, in a cache of that size, which the first such call has made for a longer prompt."""
        options = greedy if slots is None else greedy | {"prompt_cache": kept(slots)}
        if slots is not None and not kept(slots).reused:
            model.generate(np.resize(ids, (1, slots // 2)), max_new_tokens=2, **options)
        made = model.generate(ids, max_new_tokens=new, **options).sequences
        if slots is not None:
            assert kept(slots)._state.tokens_BS.shape[1] == slots, "another cache than was asked for"
        return made

    return generate, {"version": jax.__version__, "bytes": size, "parameters": model.num_params()}


START = {"torch": torch_engine, **({"llama.cpp": llama_engine} if llama.INSTALLED else {}), "easydel": our_engine}
PEERS = [name for name in START if name != "easydel"]


def serve(engine: str, directory: str, vocabulary: int) -> None:
    """Answers each line on stdin, (batch, length, new tokens, more), with seconds and the new tokens.

    `more` are arguments that only our engine takes.
    """
    generate, facts = START[engine](directory)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        batch, length, new, *more = json.loads(line)
        ids = np.random.default_rng(length).integers(3, vocabulary, (batch, length))
        start = time.perf_counter()
        tokens = generate(ids, new, *more)
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


@contextmanager
def started(shape: str) -> Iterator[dict[str, Worker]]:
    """Yields the engines by name, with one random model."""
    with tempfile.TemporaryDirectory() as directory:
        make_model(directory, shape)
        if llama.INSTALLED:
            llama.write_model(directory)
        vocabulary = str(SHAPES[shape]["vocab_size"])
        engines = {name: Worker(__file__, name, directory, vocabulary) for name in START}
        yield engines
        for engine in engines.values():
            engine.close()


def in_turn(asks: Mapping[str, Callable[[], tuple[float, Any]]], repeat: int) -> dict[str, Any]:
    """Returns each engine's seconds in `rounds`, after one that may compile, and the engines whose answers differ."""
    answers = {name: ask()[1] for name, ask in asks.items()}
    expected = next(iter(answers.values()))
    rounds = [{name: ask()[0] for name, ask in asks.items()} for _ in range(repeat)]
    return {"rounds": rounds, "differ": [name for name, answer in answers.items() if answer != expected]}


def compare(engines: Mapping[str, Worker], cases: Mapping[str, Ask], repeat: int) -> dict[str, Any]:
    """Runs `in_turn` on all engines for each case, which asks an engine and returns seconds and tokens."""
    return {
        case: in_turn({name: partial(ask, engine) for name, engine in engines.items()}, repeat)
        for case, ask in cases.items()
    }


def ratios(result: Mapping[str, Any], slow: str, fast: str) -> list[float]:
    """Returns the factors by which `fast` was faster, one per round."""
    return [one[slow] / one[fast] for one in result["rounds"]]


def spread(values: Sequence[float]) -> list[str]:
    """Returns median, minimum and maximum."""
    return [f"{of(values):.2f}" for of in (statistics.median, min, max)]


def report(
    chosen: argparse.Namespace,
    title: str,
    notes: Sequence[str],
    results: Mapping[str, Any],
    engines: Mapping[str, Worker],
    **raw: Any,
) -> None:
    """Prints a table, and writes JSON. Each result is from `compare`, with its `limit` in seconds, and `least`."""
    times = [*(f"{name} ms" for name in PEERS), "ours ms"]
    faster, *others = [[f"{name} / ours", "min", "max"] for name in PEERS]
    columns = ["case", *times, *faster, "at least", *chain(*others), "of the limit", "tokens"]
    rows = [row(case, result) for case, result in results.items()]
    bars = {case: statistics.median(ratios(result, "torch", "easydel")) for case, result in results.items()}
    for peer in PEERS[1:]:
        bars |= {f"{peer}, {case}": statistics.median(ratios(results[case], "torch", peer)) for case in results}
    measured = Measured(title, columns, rows, bars, "speed / torch's", [*notes, llama.NOTE])
    show(measured)
    if chosen.output:
        facts = {name: engine.facts for name, engine in engines.items()}
        write(chosen.output, measured, chosen.machine, shape=chosen.shape, engines=facts, results=results, **raw)


def row(case: str, result: Mapping[str, Any]) -> list[str]:
    medians = {name: statistics.median(one[name] for one in result["rounds"]) for name in START}
    times = [f"{1e3 * seconds:.2f}" for seconds in medians.values()]
    faster, *others = [spread(ratios(result, peer, "easydel")) for peer in PEERS]
    share = f"{100 * result['limit'] / medians['easydel']:.0f} %"
    same = f"{', '.join(result['differ'])} DIFFER" if result["differ"] else "same"
    return [case, *times, *faster, str(result["least"]), *chain(*others), share, same]


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
