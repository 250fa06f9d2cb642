"""One process of a two-process job on the devices of both: loads, saves or trains, and writes its results as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

address, process, directory, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=process)

import optax  # noqa: E402

from easydel import AutoEasyDeLModelForCausalLM, EasyDeLError  # noqa: E402
from easydel.lora import LoRA, add_adapters, save_adapters  # noqa: E402
from easydel.train import Settings, Trainer, init_state, step  # noqa: E402
from easydel.tree import flatten  # noqa: E402

folder = Path(sys.argv[5]).parent

MESHES = {"fsdp": (1, 8, 1, 1), "mixed": (1, 2, 2, 2), "dp": (8, 1, 1, 1)}


def shards(params: Any, original: dict[str, np.ndarray]) -> tuple[int, bool]:
    """Bytes of the distinct parts that this process holds, and whether all are equal to the file's."""
    owned, equal = 0, True
    for path, leaf in flatten(params).items():
        distinct = {str(shard.index): shard for shard in leaf.addressable_shards}
        owned += sum(shard.data.nbytes for shard in distinct.values())
        equal &= all(np.array_equal(shard.data, original[path][shard.index]) for shard in distinct.values())
    return owned, equal


def in_fewer_bits(floats: dict[str, np.ndarray], **choice: bool) -> dict[str, Any]:
    """Bytes of the file for the numbers that this process holds by codes, and all that were read of it."""
    _, whole = AutoEasyDeLModelForCausalLM.from_pretrained(directory, **choice)
    model, params = load(mode, **choice)
    alone, held = {path: np.asarray(leaf) for path, leaf in flatten(whole).items()}, 0.0
    for path, leaf in flatten(params).items():  # a block that lies on several devices is several blocks
        alone[path] = np.repeat(alone[path], leaf.shape[-1] // alone[path].shape[-1], axis=-1)
    equal = shards(params, alone)[1]
    for path, leaf in flatten(params).items():
        if path in floats:  # not the scales beside it
            distinct = {str(shard.index): shard.data.size for shard in leaf.addressable_shards}
            held += floats[path].nbytes * sum(distinct.values()) / leaf.size
    report = model.load_report
    return {"read": report.bytes_read + report.bytes_mapped, "held": held, "equal": equal}


def failure(work: Callable[[], Any]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        work()
    except EasyDeLError as error:
        return {"error": str(error), "kind": type(error).__name__, "seconds": time.monotonic() - started}
    return {"error": None}


def load(mesh: str, place: str | Path = directory, **arguments: Any) -> tuple[Any, Any]:
    return AutoEasyDeLModelForCausalLM.from_pretrained(
        place, auto_shard_params=True, sharding_axis_dims=MESHES[mesh], **arguments
    )


def saved() -> dict[str, Any]:
    """Files that are compared by who started this, and what is said where process 0 cannot write."""
    model, _ = load("mixed", scan_layers=True)
    model.save_pretrained(folder / "own")
    model.export(folder / "exported")
    add_adapters(model, LoRA(r=2), seed=3)
    save_adapters(model, folder / "adapters")
    int8, _ = load("fsdp", load_in_8bit=True)
    int8.save_pretrained(folder / "int8")
    plain, params = load("mixed")
    (folder / f"file-{process}").write_text("in the way")
    in_the_way = failure(lambda: plain.save_pretrained(folder / f"file-{process}"))
    nan = jax.tree.map(lambda leaf: leaf * float("nan"), params)
    large = jax.tree.map(lambda leaf: leaf * 1e6, params)
    return {
        "in the way": in_the_way,
        "nan": failure(lambda: plain.save_pretrained(folder / "nan", nan)),
        "large": failure(lambda: plain.export(folder / "large", large, dtype="float16")),
    }


def trained() -> dict[str, Any]:
    """Two steps, a process that starts again (as far as the trainer can tell), and two more."""
    tokens = np.random.default_rng(0).integers(3, 96, 400).astype(np.int32)
    for steps in (2, 4):
        model, params = load("fsdp", donatable=True)
        settings = Settings(steps=steps, batch=4, length=16)
        state = Trainer(model, params, optax.adam(1e-3), tokens, folder / "trained", settings).run()
    model.export(folder / "result", state.params)
    return {"steps": int(state.count)}


def disagreeing() -> dict[str, Any]:
    """What is said where the processes differ: in their mesh, config, prompts, settings, batches, or next step."""
    other = process == 1
    found = {
        "mesh": failure(lambda: load("mixed" if other else "fsdp")),
        "devices": failure(lambda: AutoEasyDeLModelForCausalLM.from_pretrained(directory, auto_shard_params=not other)),
        "config": failure(lambda: load("fsdp", config_kwargs={"rms_norm_eps": 1e-3 if other else 1e-5})),
        "dtype": failure(lambda: load("fsdp", dtype="bfloat16" if other else "float32")),
    }
    model, params = load("fsdp")
    ids = np.arange(8, dtype=np.int32).reshape(1, 8)
    optimizer = optax.sgd(1e-3)
    advance, state = step(model, optimizer), init_state(model, params, optimizer)
    batch = {"input_ids": ids.repeat(8, 0), "labels": ids.repeat(8, 0)}
    return found | {
        "prompts": failure(lambda: model.generate(ids + other, max_new_tokens=2)),
        "settings": failure(lambda: model.generate(ids, max_new_tokens=2 + other, do_sample=other)),
        "batch": failure(lambda: advance(state, batch | {"labels": batch["labels"] + other})),
        "step": failure(lambda: model.generate(ids, max_new_tokens=2) if other else advance(state, batch)),
    }


def run() -> dict[str, Any]:
    if mode == "disagreeing":
        return disagreeing()
    if mode == "failing":
        found = failure(lambda: load("mixed"))
        _, again = load("mixed", folder / "mended")
        return found | {"again": len(flatten(again))}
    if mode in ("saved", "trained"):
        return saved() if mode == "saved" else trained()
    _, whole = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    original = {path: np.asarray(leaf) for path, leaf in flatten(whole).items()}
    model, params = load(mode)
    owned, equal = shards(params, original)
    choices = ("load_in_8bit", "load_in_4bit") if mode == "mixed" else ()
    fewer = {name: in_fewer_bits(original, **{name: True}) for name in choices}
    ids = np.arange(16, dtype=np.int32).reshape(2, 8)
    logits = jax.jit(lambda p: model.apply(p, ids).logits, out_shardings=replicated(params))(params)
    report, greedy = model.load_report, model.generate(ids, max_new_tokens=4, do_sample=False)
    return {
        "read": report.bytes_read + report.bytes_mapped,
        "owned": owned,
        "equal": equal,
        "fewer": fewer,
        "tokens": np.asarray(greedy.sequences).tolist(),
        "logits": float(np.abs(np.asarray(logits) - np.load(f"{directory}/logits.npy")).max()),
    }


def replicated(params: Any) -> Any:
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


Path(sys.argv[5]).write_text(json.dumps(run()))
jax.distributed.shutdown()
