"""From the start of a process to the first token of an answer: ours and transformers', in turn.

    python benchmarks/cold.py [--repeat 5] [--output out.json]

SmolLM2-135M's shape with random weights, float32, a prompt of 17 tokens, files in the page cache. Ours is measured with
nothing compiled before, and with the compilation cache that an earlier process left. Every run is a new process, timed
from outside until it says that it has the token. A busy machine is refused unless --force.
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

from measured import Measured, quiet_machine, show, write

CONFIG = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
OURS = """
import sys
import numpy as np
from easydel import AutoEasyDeLModelForCausalLM
from easydel.generate import compile_ahead

def first(tokens):
    print("token", int(tokens[0]), flush=True)

prompt, settings = np.arange(100, 117)[None], dict(max_new_tokens=64, do_sample=False, eos_token_id=None)
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
prompt = torch.arange(100, 117)[None]
model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, streamer=First())
"""
LIMITS = {"ours, nothing cached": 0.75, "ours, cached": 0.45}


def first_token(program: str, directory: str, cache: str) -> tuple[float, str]:
    """Seconds until a process prints its first token, and that line."""
    environment = os.environ | {"XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program, directory],
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


def finished(program: str, directory: str, cache: str) -> None:
    """One process to its end: it leaves its compiled programs."""
    environment = os.environ | {"XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program, directory], env=environment, capture_output=True, check=True)


def measure(directory: str, repeat: int) -> tuple[dict[str, list[float]], set[str]]:
    seconds: dict[str, list[float]] = {"transformers": [], **{name: [] for name in LIMITS}}
    tokens: set[str] = set()

    def run(name: str, program: str, cache: str) -> None:
        took, token = first_token(program, directory, cache)
        seconds[name].append(took)
        tokens.add(token)

    with tempfile.TemporaryDirectory() as warm:
        finished(OURS, directory, warm)
        first_token(THEIRS, directory, warm)  # files and libraries are in the page cache from here on
        for _ in range(repeat):
            run("transformers", THEIRS, warm)
            with tempfile.TemporaryDirectory() as empty:
                run("ours, nothing cached", OURS, empty)
            run("ours, cached", OURS, warm)
    return seconds, tokens


def table(seconds: dict[str, list[float]]) -> Measured:
    columns = ("engine", "seconds, median", "x transformers, median", "min", "max", "at most")
    rows, bars = [], {}
    for name, values in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(values, seconds["transformers"], strict=True)]
        row = [f"{f(ratios):.2f}" for f in (statistics.median, min, max)]
        rows.append((name, f"{statistics.median(values):.2f}", *row, str(LIMITS.get(name, ""))))
        bars[name] = statistics.median(ratios)
    return Measured("From the start of a process to the first token", columns, rows, bars, "seconds / transformers'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    arguments = parser.parse_args()
    machine = quiet_machine(force=arguments.force)
    with tempfile.TemporaryDirectory() as directory:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        model.generation_config.eos_token_id = None
        model.save_pretrained(directory)
        seconds, tokens = measure(directory, arguments.repeat)
    measured = table(seconds)
    show(measured)
    if len(tokens) > 1:
        raise SystemExit(f"the engines disagree: {', '.join(sorted(tokens))}")
    if arguments.output:
        write(arguments.output, measured, machine, seconds=seconds)


if __name__ == "__main__":
    main()
