"""Measures loading, as ratios to copying the same bytes from the page cache (the limit) in the same process.

    python benchmarks/load.py [--size 1.1b|135m] [--repeat 11] [--output out.json]

Memory that was free for a while may have gone back to the host, and its first touch then costs 10 to 20 times more. So
the memory is touched once, and then two copies, of which the second is timed, and a load take turns: each finds the
memory that the one before has just freed. Turns in which the host still took its time (steal in /proc/stat) do not
count and are repeated: they may take ten times longer, and the longer a case takes, the more of them it has. Each
engine runs in a process of its own.
Our ratios are to the copy right before each load. Other engines leave memory in small pieces, which slows the next copy
down: their ratios are to the median of our copies. Mapped files cost more at their first use, so the time to touch each
page of the result is measured with every load. A busy machine is refused unless --force.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from measured import Measured, quiet_machine, show, stolen, write

SIZES = {  # vocabulary, features, hidden, layers, heads, kv heads
    "1.1b": (32000, 2048, 5632, 22, 32, 4),
    "135m": (49152, 576, 1536, 30, 12, 4),
}
SHARDS = 5
ATTEMPTS, LEAST = 4, 5  # turns per counted turn, at most; with fewer counted turns than LEAST nothing is reported
Results = dict[str, list[dict[str, float]]]
OURS = {
    "own aligned files, bf16": ("own", "dict(param_dtype=jnp.bfloat16, from_torch=False)"),
    "Hub files, bf16": ("hub", "dict(param_dtype=jnp.bfloat16)"),
    "Hub files, bf16 -> f32": ("hub", "dict()"),
    "Hub files, bf16 -> int8": ("hub", "dict(param_dtype=jnp.bfloat16, load_in_8bit=True)"),
    "8 devices, tensor parallel": (
        "hub",
        "dict(param_dtype=jnp.bfloat16, auto_shard_params=True, sharding_axis_dims=(1, 2, 4, 1))",
    ),
    "stacked for scan": ("hub", "dict(param_dtype=jnp.bfloat16, scan_layers=True)"),
}
LIMITS = {
    "own aligned files, bf16": 0.25,
    "Hub files, bf16": 1.2,
    "Hub files, bf16 -> f32": 2.4,
    "Hub files, bf16 -> int8": 3.5,
    "8 devices, tensor parallel": 1.8,
    "stacked for scan": 1.2,
}
TORCH = """
import torch, transformers
load = lambda path: transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.{dtype})
arrays = lambda model: [part.detach().flatten().view(torch.uint8).numpy() for part in model.parameters()]
"""
PEERS = {
    "transformers torch, bf16": TORCH.format(dtype="bfloat16"),
    "transformers torch, f32": TORCH.format(dtype="float32"),
    "safetensors.numpy + jnp.asarray": """
import glob, jax, ml_dtypes, numpy as np, jax.numpy as jnp
from safetensors.numpy import load_file
def load(path):
    files = sorted(glob.glob(path + "/*.safetensors"))
    return jax.block_until_ready([jnp.asarray(array) for file in files for array in load_file(file).values()])
arrays = lambda loaded: [np.asarray(array) for array in loaded]
""",
}
OUR_LOADER = """
import jax, numpy as np, jax.numpy as jnp
from easydel import AutoEasyDeLModelForCausalLM
jax.devices()
def load(path):
    loaded = AutoEasyDeLModelForCausalLM.from_pretrained(path, **{arguments})
    jax.block_until_ready(loaded[1])
    return loaded
arrays = lambda loaded: [np.asarray(s.data) for leaf in jax.tree.leaves(loaded[1]) for s in leaf.addressable_shards]
def above(loaded):
    report, owned = loaded[0].load_report, sum(array.nbytes for array in arrays(loaded))
    return report.peak_bytes - (owned - report.bytes_mapped)
"""
VERSUS = {  # the share of another engine's time that ours may take
    "own aligned files, bf16": ("transformers torch, bf16", 1.0),
    "Hub files, bf16 -> f32": ("transformers torch, f32", 0.7),
}
INT8_LIMIT = 1.4 * 2**30
INT8_PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
import jax, jax.numpy as jnp
from easydel import AutoEasyDeLModelForCausalLM
_, params = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[1], param_dtype=jnp.bfloat16, load_in_8bit=True)
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def make_checkpoint(directory: Path, size: str) -> None:
    """Makes a random Llama in bfloat16, in shards whose data starts wherever their header ends, as on the Hub."""
    from safetensors.numpy import save_file

    vocab, features, hidden, layers, heads, kv_heads = SIZES[size]
    narrow = features // heads * kv_heads
    shapes = {"model.embed_tokens.weight": (vocab, features), "model.norm.weight": (features,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (features, features),
            "self_attn.k_proj": (narrow, features),
            "self_attn.v_proj": (narrow, features),
            "self_attn.o_proj": (features, features),
            "mlp.gate_proj": (hidden, features),
            "mlp.up_proj": (hidden, features),
            "mlp.down_proj": (features, hidden),
            "input_layernorm": (features,),
            "post_attention_layernorm": (features,),
        }.items():
            shapes[f"{prefix}{name}.weight"] = shape
    shapes["lm_head.weight"] = (vocab, features)
    random, names, weight_map = np.random.default_rng(0), list(shapes), {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        own = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        weight_map |= dict.fromkeys(own, file)
        save_file(
            {n: normal(random, shapes[n]) for n in own}, directory / file, metadata={"format": "pt", "n": "x" * shard}
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": features,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (random.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)


def touch(size: int) -> None:
    """Makes the host give us `size` bytes, which stay with this machine for a while after they are freed."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    np.frombuffer(memory, np.uint8)[::4096] = 1


def copy_seconds(files: list[Path]) -> float:
    """Copies all bytes of `files` from the page cache into fresh huge pages, with two threads: the limit."""
    total = sum(file.stat().st_size for file in files)
    memory = mmap.mmap(-1, total + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view, pieces, start = memoryview(memory), [], 0
    handles = [os.open(file, os.O_RDONLY) for file in files]
    for handle, file in zip(handles, files, strict=True):
        for offset in range(0, file.stat().st_size, 16 << 20):
            length = min(16 << 20, file.stat().st_size - offset)
            pieces.append((handle, view[start : start + length], offset))
            start += length
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda piece: os.preadv(piece[0], [piece[1]], piece[2]), pieces))
    seconds = time.perf_counter() - started
    for handle in handles:
        os.close(handle)
    return seconds


def measure(loader: str, directory: str, repeat: int) -> list[dict[str, float]]:
    """Returns, for turns that count, seconds to copy, load and touch, and the bytes above the parameters."""
    scope: dict[str, Any] = {}
    exec(loader, scope)
    load: Callable[[str], Any] = scope["load"]
    files = sorted(Path(directory).glob("*.safetensors"))
    footprint = 4 * sum(file.stat().st_size for file in files)
    runs: list[dict[str, float]] = []
    touch(footprint)
    for turn in range(1 + ATTEMPTS * repeat):  # the first turn imports and compiles
        copy_seconds(files)  # frees memory for the next copy, whatever the host has taken since the last turn
        before, copied = stolen(), copy_seconds(files)
        started = time.perf_counter()
        loaded = load(directory)
        seconds = time.perf_counter() - started
        touched = first_touch(scope["arrays"](loaded))
        if turn and stolen() == before:
            result = {"copy": copied, "load": seconds, "touch": touched}
            runs.append(result | ({"above": scope["above"](loaded)} if "above" in scope else {}))
        if len(runs) == repeat:
            break
        del loaded
        gc.collect()  # now, and not in the middle of the next run
    if len(runs) < min(LEAST, repeat):
        turns = ATTEMPTS * repeat
        raise SystemExit(f"the host disturbed all but {len(runs)} of {turns} turns: ratios would mean little")
    return runs


def first_touch(arrays: list[np.ndarray]) -> float:
    """Returns the seconds to read one byte of each page."""
    started = time.perf_counter()
    for array in arrays:
        array.reshape(-1).view(np.uint8)[::4096].max(initial=0)
    return time.perf_counter() - started


def run_case(python: str, loader: str, directory: Path, repeat: int) -> list[dict[str, float]]:
    command = [python, __file__, "--measure", loader, str(directory), "--repeat", str(repeat)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{loader}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def make_own(source: Path, target: Path) -> None:
    """Makes a checkpoint with `save_pretrained`, in a separate process."""
    program = (
        "import jax.numpy as jnp; from easydel import AutoEasyDeLModelForCausalLM as A; "
        f"A.from_pretrained({str(source)!r}, param_dtype=jnp.bfloat16)[0].save_pretrained({str(target)!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def int8_under_limit(directory: Path) -> int | None:
    """Returns the bytes of int8 parameters, loaded with data limited to `INT8_LIMIT`; None if that failed."""
    program = INT8_PROGRAM.format(limit=int(INT8_LIMIT))
    done = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def with_copies(results: Results) -> Results:
    """Adds to each run the copy that the load is compared with."""
    own = [run["copy"] for name in results if name in OURS for run in results[name]]
    typical = {"copy": statistics.median(own)} if own else {}
    return {name: runs if name in OURS else [run | typical for run in runs] for name, runs in results.items()}


def ratios(runs: list[dict[str, float]], what: str) -> list[float]:
    return [run[what] / run["copy"] for run in runs]


def seconds(runs: list[dict[str, float]]) -> float:
    return statistics.median(run["load"] for run in runs)


def against(name: str, results: Results) -> str:
    """Returns a case's time relative to transformers', with the largest allowed ratio."""
    peer, most = VERSUS.get(name, ("", 0.0))
    return f"{seconds(results[name]) / seconds(results[peer]):.2f} ({most})" if peer in results else ""


def table(results: Results, limited: int | None, *, partial: bool) -> Measured:
    columns = ("case", "seconds", "x copy", "min", "max", "at most", "x torch", "first touch", "MiB above")
    rows = []
    for name, runs in results.items():
        row = [f"{f(ratios(runs, 'load')):.2f}" for f in (statistics.median, min, max)]
        above = f"{max(run['above'] for run in runs) / 2**20:.0f}" if "above" in runs[0] else ""
        touched = f"{statistics.median(ratios(runs, 'touch')):.2f}"
        limits = (str(LIMITS.get(name, "")), against(name, results))
        rows.append((name, f"{seconds(runs):.3f}", *row, *limits, touched, above))
    outcome = "FAILED" if limited is None else f"{limited / 2**20:.0f} MiB of parameters"
    notes = [] if partial else [f"int8 with the process's data limited to {INT8_LIMIT / 2**20:.0f} MiB: {outcome}."]
    copied = statistics.median(run["copy"] for runs in results.values() for run in runs)
    counted = [len(runs) for runs in results.values()]
    notes.append(f"Turns in which the host took time do not count; {min(counted)} to {max(counted)} of each case do.")
    notes.append(f"Copying the bytes, with two threads into fresh huge pages, took {copied:.2f} s (median).")
    notes.append("MiB above: how far the process's own memory was above that of the parameters, at most.")
    bars = {name: statistics.median(ratios(runs, "load")) for name, runs in results.items()}
    return Measured("Loading", columns, rows, bars, "seconds to load / seconds to copy the bytes", notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--output", type=Path, help="for benchmarks/report.py")
    parser.add_argument("--scratch", type=Path, help="where to make the checkpoints (4.4 GB); default: as tempfile")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--measure", nargs=2, metavar=("LOADER", "DIRECTORY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.repeat)))
        return
    machine = quiet_machine(force=arguments.force)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        hub, own = Path(folder, "hub"), Path(folder, "own")
        hub.mkdir()
        make_checkpoint(hub, arguments.size)
        make_own(hub, own)
        cases = {
            name: (OUR_LOADER.replace("{arguments}", a), own if w == "own" else hub) for name, (w, a) in OURS.items()
        }
        cases |= {name: (loader, hub) for name, loader in PEERS.items()}
        results = {
            name: run_case(sys.executable, loader, directory, arguments.repeat)
            for name, (loader, directory) in cases.items()
            if not arguments.only or arguments.only in name
        }
        limited = None if arguments.only else int8_under_limit(hub)
    measured = table(with_copies(results), limited, partial=bool(arguments.only))
    show(measured)
    if arguments.output:
        write(arguments.output, measured, machine, size=arguments.size, results=results, int8_under_limit=limited)


if __name__ == "__main__":
    main()
