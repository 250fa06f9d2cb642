"""Measures loading, warmed and as users have it, as ratios to other engines and to copying the same bytes.

    python benchmarks/load.py [--size 1.1b|135m] [--repeat 11] [--pairs 5] [--output out.json]

Memory that was free for a while may have gone back to the host: its first touch then costs 10 to 20 times more.

Warmed: the memory is touched once, and then two copies, of which the second is timed, and a load take turns in one
process: each finds the memory that the one before has just freed. Our ratios are to the copy right before each load.
Other engines leave memory in small pieces, which slows the next copy down: theirs are to the median of our copies.

Unwarmed: one load in a process of its own, right after the imports, with whatever memory the machine gives. All cases
take turns, and a ratio is of two loads of the same round.

All turns count. In some the host takes time from this machine (steal in /proc/stat), and the table says in how many.
Mapped files cost more at their first use, so the time to read every weight once, with one thread, is measured with
every load. A busy machine is refused unless --force.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import KINDS, SIZES, make_checkpoint
from measured import Measured, quiet_machine, show, stolen, write

Turn = dict[str, float]
Results = Mapping[str, Sequence[Turn]]
TORCH_F32, TORCH_BF16, PLAIN = "transformers torch, f32", "transformers torch, bf16", "Hub files, bf16"
OURS = {  # case -> checkpoint, arguments
    "own aligned files, bf16": ("own", "dict(param_dtype=jnp.bfloat16, from_torch=False)"),
    PLAIN: ("hub", "dict(param_dtype=jnp.bfloat16)"),
    "Hub files, bf16 -> f32": ("hub", "dict()"),
    "Hub files, bf16 -> int8": ("hub", "dict(param_dtype=jnp.bfloat16, load_in_8bit=True)"),
    "4 bits, kept": ("4 bits", "dict(param_dtype=jnp.bfloat16)"),
    "float8, kept": ("float8", "dict(param_dtype=jnp.bfloat16)"),
    "8 devices, tensor parallel": (
        "hub",
        "dict(param_dtype=jnp.bfloat16, auto_shard_params=True, sharding_axis_dims=(1, 2, 4, 1))",
    ),
    "stacked for scan": ("hub", "dict(param_dtype=jnp.bfloat16, scan_layers=True)"),
}
LIMITS = {  # of the warmed seconds to load / seconds to copy
    "own aligned files, bf16": 0.25,
    PLAIN: 1.2,
    "Hub files, bf16 -> f32": 2.4,
    "Hub files, bf16 -> int8": 3.5,
    "8 devices, tensor parallel": 1.8,
    "stacked for scan": 1.2,
}
WARMED = {  # the share of another case's time that ours may take
    "own aligned files, bf16": (TORCH_BF16, 1.0),
    "Hub files, bf16 -> f32": (TORCH_F32, 0.7),
    "4 bits, kept": (TORCH_F32, 0.35),
    "float8, kept": (PLAIN, 1.0),
}
UNWARMED = {  # the first touch of all weights included: a mapped file is only read then
    PLAIN: (TORCH_BF16, 1.5),
    "Hub files, bf16 -> f32": (TORCH_F32, 1.0),
    "Hub files, bf16 -> int8": (TORCH_F32, 1.0),
    "4 bits, kept": (TORCH_F32, 0.35),
    "float8, kept": (PLAIN, 1.0),
}
TORCH = """
import torch, transformers
from transformers.models.llama import modeling_llama
load = lambda path: transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.{dtype})
arrays = lambda model: [part.detach().flatten().view(torch.uint8).numpy() for part in model.parameters()]
"""
PEERS = {
    TORCH_BF16: TORCH.format(dtype="bfloat16"),
    TORCH_F32: TORCH.format(dtype="float32"),
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
import easydel.families.llama  # as transformers' above
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
LIMITED = {"Hub files, bf16 -> int8": 1.4 * 2**30, "4 bits, kept": 0.9 * 2**30}  # bytes of data of the whole process
LIMITED_PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
import jax, jax.numpy as jnp
from easydel import AutoEasyDeLModelForCausalLM
from easydel.weights.execute import own_memory
jax.devices()
before = own_memory()
model, params = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[1], **{arguments})
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), before, before + model.load_report.peak_bytes)
"""


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


def measure(loader: str, directory: str, repeat: int) -> list[Turn]:
    """Returns what each warmed turn took; without turns to `repeat`, the one load of an unwarmed process."""
    scope: dict[str, Any] = {}
    exec(loader, scope)
    files = sorted(Path(directory).glob("*.safetensors"))
    if not repeat:
        return [one_turn(scope, directory)[0]]
    turns: list[Turn] = []
    touch(4 * sum(file.stat().st_size for file in files))
    for turn in range(1 + repeat):  # the first turn compiles
        copy_seconds(files)  # frees memory for the next copy, whatever the host has taken since the last turn
        copied = copy_seconds(files)
        found, loaded = one_turn(scope, directory)
        if turn:
            turns.append(found | {"copy": copied})
        del loaded
        gc.collect()  # now, and not in the middle of the next turn
    return turns


def one_turn(scope: Mapping[str, Any], directory: str) -> tuple[Turn, Any]:
    """Returns seconds to load and to touch, the bytes above the parameters, and what was loaded."""
    load: Callable[[str], Any] = scope["load"]
    before, started = stolen(), time.perf_counter()
    loaded = load(directory)
    found: Turn = {"load": time.perf_counter() - started}
    found |= {"touch": first_touch(scope["arrays"](loaded)), "disturbed": float(stolen() != before)}
    return found | ({"above": scope["above"](loaded)} if "above" in scope else {}), loaded


def first_touch(arrays: list[np.ndarray]) -> float:
    """Returns the seconds to read every weight once."""
    started = time.perf_counter()
    for array in arrays:
        array.reshape(-1).view(np.uint8).max(initial=0)
    return time.perf_counter() - started


def run_case(loader: str, directory: Path, repeat: int) -> list[Turn]:
    command = [sys.executable, __file__, "--measure", loader, str(directory), "--repeat", str(repeat)]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }
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


def under_limit(name: str, folder: Path) -> str:
    """Returns how a load ended in a process whose data is limited, and the memory that it used of it.

    The limit is of memory that is reserved; what JAX and Flax reserve and do not use counts, too.
    """
    kind, arguments = OURS[name]
    program = LIMITED_PROGRAM.format(limit=int(LIMITED[name]), arguments=arguments)
    command = [sys.executable, "-c", program, str(folder / kind)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    outcome = "FAILED"
    if done.returncode == 0:
        parameters, before, peak = (int(count) / 2**20 for count in done.stdout.split())
        outcome = f"{parameters:.0f} MiB of parameters, {peak:.0f} MiB in use, {before:.0f} of them before the load"
    return f"{name}, with the process's data limited to {LIMITED[name] / 2**20:.0f} MiB: {outcome}."


def with_copies(results: Results) -> Results:
    """Adds to each turn the copy that the load is compared with."""
    own = [turn["copy"] for name in results if name in OURS for turn in results[name]]
    typical = {"copy": statistics.median(own)} if own else {}
    return {name: turns if name in OURS else [turn | typical for turn in turns] for name, turns in results.items()}


def ratios(turns: Sequence[Turn], what: str) -> list[float]:
    return [turn[what] / turn["copy"] for turn in turns]


def warmed_share(name: str, results: Results) -> str:
    """Returns a case's median time relative to another one's, with the largest allowed ratio."""
    peer, most = WARMED.get(name, ("", 0.0))
    if peer not in results:
        return ""
    own, other = (statistics.median(turn["load"] for turn in results[case]) for case in (name, peer))
    return f"{own / other:.2f} ({most})"


def unwarmed_share(name: str, results: Results) -> str:
    """Returns the median of a case's times relative to another one's of the same rounds."""
    peer, most = UNWARMED.get(name, ("", 0.0))
    if peer not in results:
        return ""
    pairs = zip(results[name], results[peer], strict=True)
    found = [(own["load"] + own["touch"]) / (other["load"] + other["touch"]) for own, other in pairs]
    return f"{statistics.median(found):.2f} ({most})"


def table(warmed: Results, unwarmed: Results, notes: list[str]) -> Measured:
    columns = ("case", "warmed s", "x copy", "min", "max", "at most", "x other", "unwarmed s", "min", "max", "x other")
    rows = []
    for name, turns in warmed.items():
        times, fresh = ratios(turns, "load"), [turn["load"] + turn["touch"] for turn in unwarmed.get(name, ())]
        rows.append(
            (
                name,
                f"{statistics.median(turn['load'] for turn in turns):.3f}",
                *[f"{f(times):.2f}" for f in (statistics.median, min, max)],
                str(LIMITS.get(name, "")),
                warmed_share(name, warmed),
                *[f"{f(fresh):.2f}" if fresh else "" for f in (statistics.median, min, max)],
                unwarmed_share(name, unwarmed) if fresh else "",
                f"{statistics.median(ratios(turns, 'touch')):.2f}",
                f"{max(turn['above'] for turn in turns) / 2**20:.0f}" if "above" in turns[0] else "",
                f"{disturbed(turns)}, {disturbed(unwarmed.get(name, ()))}",
            )
        )
    copied = statistics.median(turn["copy"] for turns in warmed.values() for turn in turns)
    told = [
        f"Copying the bytes, with two threads into fresh huge pages, took {copied:.2f} s (median).",
        "Unwarmed: one load in a fresh process, and the first touch of all weights.",
        "First touch: of warmed turns, x copy.",
        "MiB above: how far the process's own memory was above that of the parameters, at most.",
        "Disturbed: warmed and unwarmed turns in which the host took time. They count like the others.",
    ]
    bars = {name: statistics.median(ratios(turns, "load")) for name, turns in warmed.items()}
    more = ("first touch", "MiB above", "disturbed")
    return Measured("Loading", (*columns, *more), rows, bars, "seconds to load / seconds to copy", [*notes, *told])


def disturbed(turns: Sequence[Turn]) -> str:
    return f"{sum(int(turn['disturbed']) for turn in turns)} of {len(turns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--repeat", type=int, default=11, help="warmed turns")
    parser.add_argument("--pairs", type=int, default=5, help="unwarmed turns")
    parser.add_argument("--output", type=Path, help="for benchmarks/report.py")
    parser.add_argument("--scratch", type=Path, help="where to make the checkpoints (6.5 GB); default: as tempfile")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    parser.add_argument("--measure", nargs=2, metavar=("LOADER", "DIRECTORY"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(*chosen.measure, chosen.repeat)))
        return
    machine = quiet_machine(force=chosen.force)
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as name:
        folder = Path(name)
        cases = {case: (OUR_LOADER.replace("{arguments}", a), folder / kind) for case, (kind, a) in OURS.items()}
        cases |= {case: (loader, folder / "hub") for case, loader in PEERS.items()}
        cases = {case: run for case, run in cases.items() if any(part in case for part in chosen.only or [""])}
        for kind in KINDS:
            (folder / kind).mkdir()
            make_checkpoint(folder / kind, chosen.size, kind)
        make_own(folder / "hub", folder / "own")
        fresh = [case for case in cases if case in UNWARMED or case in PEERS]
        # each round begins with another case: what a process frees is the memory of the next one
        orders = [[*fresh[turn % len(fresh) :], *fresh[: turn % len(fresh)]] for turn in range(chosen.pairs)]
        rounds = [{case: run_case(*cases[case], 0)[0] for case in order} for order in orders]
        unwarmed = {case: [one[case] for one in rounds] for case in (fresh if rounds else ())}
        warmed = with_copies({case: run_case(*run, chosen.repeat) for case, run in cases.items()})
        notes = [under_limit(case, folder) for case in LIMITED if case in cases]
    found = table(warmed, unwarmed, notes)
    show(found)
    if chosen.output:
        write(chosen.output, found, machine, size=chosen.size, results=warmed, unwarmed=unwarmed)


if __name__ == "__main__":
    main()
