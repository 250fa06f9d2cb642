"""The plan of a large checkpoint: from headers alone, and in little time."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from headers import write_headers

from easydel.checkpoint import Tensor
from easydel.families import find_family
from easydel.loading import build_model
from easydel.policy import Policy
from easydel.prepare import plan_for
from easydel.sharding import PartitionAxis, default_rules, make_mesh, shardings
from easydel.source import open_source
from easydel.tree import flatten
from easydel.weights.explain import bytes_by_action, read_steps
from easydel.weights.expressions import Rows, Source, Stack, Transpose
from easydel.weights.plan import Plan

# The config.json of DeepSeek-V3, of what makes sizes.
SIZES = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
CONFIG = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], **SIZES}
D, EXPERT = 7168, 2048
SECONDS = 2.0  # it takes 0.7: machines differ
MEASURED = """
import re, sys, time
from pathlib import Path
from easydel.cli.app import app
app(sys.argv[1:], standalone_mode=False)
# ru_maxrss begins with the memory of the process that started this one
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print([time.process_time(), 1024 * int(peak)])
"""
Tensors = Iterator[tuple[str, tuple[int, ...]]]


def gated(name: str, hidden: int) -> Tensors:
    yield f"{name}.gate_proj.weight", (hidden, D)
    yield f"{name}.up_proj.weight", (hidden, D)
    yield f"{name}.down_proj.weight", (D, hidden)


def layer(number: int) -> Tensors:
    name = f"model.layers.{number}"
    yield f"{name}.input_layernorm.weight", (D,)
    yield f"{name}.post_attention_layernorm.weight", (D,)
    yield f"{name}.self_attn.q_a_proj.weight", (1536, D)
    yield f"{name}.self_attn.q_a_layernorm.weight", (1536,)
    yield f"{name}.self_attn.q_b_proj.weight", (128 * (128 + 64), 1536)
    yield f"{name}.self_attn.kv_a_proj_with_mqa.weight", (512 + 64, D)
    yield f"{name}.self_attn.kv_a_layernorm.weight", (512,)
    yield f"{name}.self_attn.kv_b_proj.weight", (128 * (128 + 128), 512)
    yield f"{name}.self_attn.o_proj.weight", (D, 128 * 128)
    if number < 3:
        yield from gated(f"{name}.mlp", 18432)
        return
    yield f"{name}.mlp.gate.weight", (256, D)
    yield f"{name}.mlp.gate.e_score_correction_bias", (256,)
    yield from gated(f"{name}.mlp.shared_experts", EXPERT)
    for expert in range(256):
        yield from gated(f"{name}.mlp.experts.{expert}", EXPERT)


def tensors() -> Tensors:
    """What the Hub's index lists, without the scales of its 8-bit floats; the last layer predicts further ahead."""
    yield "model.embed_tokens.weight", (129280, D)
    for number in range(62):
        yield from layer(number)
    yield "model.layers.61.eh_proj.weight", (D, 2 * D)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        yield f"model.layers.61.{norm}.weight", (D,)
    for copy in ("embed_tokens", "shared_head.head"):
        yield f"model.layers.61.{copy}.weight", (129280, D)
    yield "model.norm.weight", (D,)
    yield "lm_head.weight", (129280, D)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.3 TB of nothing."""
    kinds = ((name, "F32" if name.endswith("correction_bias") else "BF16", shape) for name, shape in tensors())
    return write_headers(tmp_path_factory.mktemp("deepseek"), CONFIG, kinds, shards=163)


def planned(directory: Path, policy: Policy) -> tuple[int, int]:
    """How many tensors there are, and how many the plan reads, after all steps from headers to shardings."""
    source = open_source(directory, saved=False)
    found = find_family("deepseek_v3")
    model = build_model(found, found.configured(source.config), policy, source)
    plan, _ = plan_for(model, source)
    shapes = {path: leaf.shape for path, leaf in flatten(model.params).items()}
    shardings(shapes, make_mesh((1, -1, 1, 1)), default_rules(PartitionAxis()), strict=False)
    return len(source.tensors), len(plan.tensors)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
def test_a_plan_of_46000_tensors_takes_little_time(directory: Path, scan_layers: bool):
    taken = []
    gc.collect()
    gc.freeze()  # what other tests left is not to be looked through
    try:
        for _ in range(3):
            started = time.process_time()
            assert planned(directory, Policy(scan_layers=scan_layers)) == (46_183, 45_395)
            taken.append(time.process_time() - started)
    finally:
        gc.unfreeze()
    assert min(taken) < SECONDS, taken


def test_the_command_for_64_hosts_and_512_devices_takes_little_time_and_memory(directory: Path):
    """Its experts are read in 23 million slices, of which a few differ."""
    command = ("plan", str(directory), "--mesh", "1,64,8,1", "--hosts", "64", "--json")
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    text, took = done.stdout.rstrip().rsplit("\n", 1)
    told, (seconds, peak_bytes) = json.loads(text), json.loads(took)
    assert seconds < 5 * SECONDS, "the start of Python and imports included"
    assert peak_bytes < 1e9
    assert told["host"]["reads"] < 1.15 * told["host"]["parts"]
    assert told["file_bytes"] == {
        "cast": sum(2 * prod(shape) for name, shape in tensors() if used(name)),
        "read": 59392,
    }


def used(name: str) -> bool:
    return not (name.startswith("model.layers.61.") or name.endswith("correction_bias"))


def test_bytes_that_are_summed_up_are_those_of_every_read():
    """Also of a stack whose tensors differ, of rows out of order, and of what can be used where it lies in the file."""
    forms = {
        "stack": Stack(tuple(Source(f"{number}") for number in range(6))),
        "turned": Stack((Transpose(Source("6")), Transpose(Source("7")))),
        "rows": Rows(Source("8"), np.array([3, 0, 1, 2, 7, 6]), 8),
        "plain": Source("9"),
        "beside": Source("10"),
    }
    shapes = {"stack": (6, 8, 12), "turned": (2, 12, 8), "rows": (6, 12), "plain": (8, 16), "beside": (8, 16)}
    lying = [(8, 12)] * 9 + [(8, 16)] * 2
    held = {
        str(number): Tensor(str(number), shape, np.dtype("f4"), Path("file"), 4 * (number == 10), (4 * shape[1], 4))
        for number, shape in enumerate(lying)
    }
    held["3"] = replace(held["3"], dtype=np.dtype("f2"), strides=(24, 2))
    plan = Plan(forms, shapes, held, ())
    splits = {path: [1] * (len(shape) - 2) + [2, 4] for path, shape in shapes.items()} | {
        "plain": [2, 1],
        "beside": [2, 1],
    }
    dtypes = dict.fromkeys(shapes, np.dtype("f4"))
    for int8 in ((), ("rows",)):
        expected: dict[str, int] = {}
        for step in read_steps(plan, splits, dtypes, int8):
            expected[step.action] = expected.get(step.action, 0) + step.nbytes
        assert bytes_by_action(plan, splits, dtypes, int8) == expected
    assert {"cast", "gather", "map", "quantize"} <= set(expected)
