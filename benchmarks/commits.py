"""Measures this checkout against another commit: loading, a decoding step, a prompt, a training step, and a call.

    python benchmarks/commits.py BASE [--repeat 5] [--job load] [--shape 135m|tiny] [--output out.json] [--force]

BASE is a commit of this repository; a git worktree of it is made for the run. Both import their own `easydel` in
processes of their own and are asked in turn, one first and then the other, so that a slower minute of the machine hits
both. Before each load as much memory as it takes is touched and freed: who gets pages that the host has taken back
is chance (`benchmarks/load.py` measures loads with such pages, too). Random models of SmolLM2-135M's shape, float32;
for calls, one with as many arrays and little in them.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, Worker, quiet_machine, show, write
from train import SHAPES, make_model, our_step

ROOT = Path(__file__).parents[1]
LOAD = "load"
PROMPT, NEW, LONG, TRAINED, CALLS = 16, 64, 512, 256, 200
Job = Callable[[], Any]


def make_jobs(directory: str, narrow: str) -> dict[str, Job]:
    """Returns what is measured, by name; a job returns what both commits must agree on."""
    from easydel import AutoEasyDeLModelForCausalLM

    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    small, params = AutoEasyDeLModelForCausalLM.from_pretrained(narrow)
    random = np.random.default_rng(0)
    short, long = (random.integers(3, model.config.vocab_size, (1, length)) for length in (PROMPT, LONG))
    batch = random.integers(3, model.config.vocab_size, (1, TRAINED))
    few = np.asarray(random.integers(3, small.config.vocab_size, (1, PROMPT)))
    step, _ = our_step(directory, batch)
    greedy: dict[str, Any] = {"do_sample": False, "eos_token_id": None}

    def generated(ids: np.ndarray, new: int) -> list[int]:
        return np.asarray(model.generate(ids, max_new_tokens=new, **greedy).sequences)[0, ids.shape[1] :].tolist()

    def load() -> int:
        return AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0].num_params()

    def call() -> None:
        for _ in range(CALLS):
            small.apply(params, few).logits.block_until_ready()

    return {
        LOAD: load,
        f"{NEW} tokens": lambda: generated(short, NEW),
        f"a prompt of {LONG}": lambda: generated(long, 1),
        f"a training step of {TRAINED}": lambda: step(batch) and None,
        f"{CALLS} calls": call,
    }


def warm(size: int) -> None:
    """Touches as much memory, in huge pages, and frees it."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    np.frombuffer(memory, np.uint8)[::4096] = 0


def serve(directory: str, narrow: str) -> None:
    """Runs the job that each line on stdin names, and answers with its seconds and its result."""
    jobs = make_jobs(directory, narrow)
    print(json.dumps(list(jobs)), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        gc.collect()  # also frees the memory of the model before
        if job == LOAD:
            warm(sum(file.stat().st_size for file in Path(directory).glob("*.safetensors")))
        start = time.perf_counter()
        result = jobs[job]()
        print(json.dumps({"seconds": time.perf_counter() - start, "result": result}), flush=True)


@contextmanager
def started(base: str, shape: str) -> Iterator[dict[str, Worker]]:
    """Yields a process for each of the two commits, with the same models."""
    with tempfile.TemporaryDirectory() as folder:
        models = [f"{folder}/model", f"{folder}/narrow"]
        make_model(models[0], shape)
        make_model(models[1], "narrow")
        other = Path(folder) / "base"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(other), base], check=True)
        try:
            yield {name: worker(place, models) for name, place in (("base", other), ("here", ROOT))}
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)], check=True)


def worker(checkout: Path, models: list[str]) -> Worker:
    os.environ["PYTHONPATH"] = str(checkout)  # before what is installed
    return Worker(__file__, "--serve", *models)


def compare(workers: dict[str, Worker], repeat: int, jobs: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the seconds of both commits for every job, round by round, and the jobs whose results differ."""
    found: dict[str, Any] = {"rounds": {}, "differ": []}
    known = workers["here"].facts
    if unknown := set(jobs or ()) - set(known):
        raise SystemExit(f"--job {', '.join(sorted(unknown))}: it is one of {', '.join(known)}")
    for job in jobs or known:
        results = [worker.ask(job)["result"] for worker in workers.values()]  # the first call may compile
        found["differ"] += [job] if results[0] != results[1] else []
        orders = [list(workers.items()), list(workers.items())[::-1]]
        found["rounds"][job] = [
            {name: worker.ask(job)["seconds"] for name, worker in orders[turn % 2]} for turn in range(repeat)
        ]
    return found


def row(job: str, rounds: list[dict[str, float]], differ: list[str]) -> list[str]:
    factors = [one["base"] / one["here"] for one in rounds]
    times = [f"{1e3 * statistics.median(one[name] for one in rounds):.1f}" for name in ("base", "here")]
    spread = [f"{of(factors):.2f}" for of in (statistics.median, min, max)]
    return [job, *times, *spread, "DIFFERENT" if job in differ else "same"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--job", action="append", help="measure this alone (may be given again)")
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--output", type=Path, help="write what was measured to this JSON file")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    chosen = parser.parse_args()
    machine = quiet_machine(force=chosen.force)
    with started(chosen.base, chosen.shape) as workers:
        found = compare(workers, chosen.repeat, chosen.job)
        for one in workers.values():
            one.close()
    columns = ["", "base ms", "here ms", "base / here", "min", "max", "results"]
    rows = [row(job, rounds, found["differ"]) for job, rounds in found["rounds"].items()]
    bars = {job: float(cells[3]) for job, cells in zip(found["rounds"], rows, strict=True)}
    measured = Measured(f"This checkout against {chosen.base}", columns, rows, bars, "speed / that of the base")
    show(measured)
    if chosen.output:
        write(chosen.output, measured, machine, base=chosen.base, **found)


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1:2] == ["--serve"] else main()
