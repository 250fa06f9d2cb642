"""Measures the time from the start of a process to the first token: ours, transformers', llama.cpp's if installed.

    python benchmarks/cold.py [--repeat 5] [--shape 135m|tiny] [--length 17] [--output out.json] [--force]

Engines take turns, with random weights of SmolLM2-135M's shape, float32, a prompt of `--length` tokens, and files in
the page cache. Ours is measured with nothing compiled before, and with the compilation cache that an earlier process
left. Every run is a new process, timed from outside until it prints the token. Python may keep its bytecode, whatever
PYTHONDONTWRITEBYTECODE says: installed packages have theirs. A busy machine is refused unless --force.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llama
from measured import Measured, quiet_machine, show, write
from train import SHAPES, make_model

OURS = """
import sys
import numpy as np
from easydel import AutoEasyDeLModelForCausalLM
from easydel.generate import compile_ahead

def first(tokens):
    print("token", int(tokens[0]), flush=True)

prompt = np.arange(100, 100 + int(sys.argv[2]))[None]
settings = dict(max_new_tokens=64, do_sample=False, eos_token_id=None)
ahead = compile_ahead(prompt, streamer=first, **settings)
model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[1], while_loading=ahead)
model.generate(prompt, streamer=first, **settings)
"""
THEIRS = """
import sys
import torch
from transformers import AutoModelForCausalLM

class First:
    def put(self, tokens):
        if tokens.ndim == 1:
            print("token", int(tokens[0]), flush=True)
    def end(self):
        pass

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
prompt = torch.arange(100, 100 + int(sys.argv[2]))[None]
model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, streamer=First())
"""
LENGTH = 17  # tokens of the prompt that the limits apply to
LIMITS = {"ours, nothing cached": 0.75, "ours, cached": 0.45}
THEIR_PROGRAMS = {"transformers": ["-c", THEIRS], **({"llama.cpp": [llama.__file__]} if llama.INSTALLED else {})}


def environment_of(cache: str) -> dict[str, str]:
    """Returns the environment of a process whose compiled programs are in the folder `cache`."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return known | {"XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}


def first_token(program: list[str], directory: str, length: int, cache: str) -> tuple[float, str]:
    """Returns the seconds until a Python process prints its first token, and that line."""
    environment = environment_of(cache)
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *program, directory, str(length)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("token")), "")
        seconds = time.perf_counter() - started
        process.kill()
        if not line:
            assert process.stderr is not None
            raise SystemExit(process.stderr.read())
    return seconds, line.strip()


def finished(program: list[str], directory: str, length: int, cache: str) -> None:
    """Runs one process to its end, so that it leaves its compiled programs."""
    command = [sys.executable, *program, directory, str(length)]
    subprocess.run(command, env=environment_of(cache), capture_output=True, check=True)


def measure(directory: str, length: int, repeat: int) -> tuple[dict[str, list[float]], set[str]]:
    seconds: dict[str, list[float]] = {name: [] for name in (*THEIR_PROGRAMS, *LIMITS)}
    tokens: set[str] = set()

    def run(name: str, program: list[str], cache: str) -> None:
        took, token = first_token(program, directory, length, cache)
        seconds[name].append(took)
        tokens.add(token)

    ours = ["-c", OURS]
    with tempfile.TemporaryDirectory() as warm:
        finished(ours, directory, length, warm)
        for program in THEIR_PROGRAMS.values():
            first_token(program, directory, length, warm)  # puts files and libraries into the page cache
        for _ in range(repeat):
            for name, program in THEIR_PROGRAMS.items():
                run(name, program, warm)
            with tempfile.TemporaryDirectory() as empty:
                run("ours, nothing cached", ours, empty)
            run("ours, cached", ours, warm)
    return seconds, tokens


def table(seconds: dict[str, list[float]], length: int) -> Measured:
    columns = ("engine", "seconds, median", "x transformers, median", "min", "max", "at most")
    rows, bars = [], {}
    for name, values in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(values, seconds["transformers"], strict=True)]
        row = [f"{f(ratios):.2f}" for f in (statistics.median, min, max)]
        most = str(LIMITS.get(name, "")) if length == LENGTH else ""
        rows.append((name, f"{statistics.median(values):.2f}", *row, most))
        bars[name] = statistics.median(ratios)
    title = f"From the start of a process to the first token, after a prompt of {length}"
    return Measured(title, columns, rows, bars, "seconds / transformers'", [llama.NOTE])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of the prompt")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    arguments = parser.parse_args()
    machine = quiet_machine(force=arguments.force)
    with tempfile.TemporaryDirectory() as directory:
        make_model(directory, arguments.shape)
        if llama.INSTALLED:
            llama.write_model(directory)
        seconds, tokens = measure(directory, arguments.length, arguments.repeat)
    measured = table(seconds, arguments.length)
    show(measured)
    if len(tokens) > 1:
        raise SystemExit(f"the engines disagree: {', '.join(sorted(tokens))}")
    if arguments.output:
        write(arguments.output, measured, machine, seconds=seconds)


if __name__ == "__main__":
    main()
