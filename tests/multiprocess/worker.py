"""One process of a two-process job: loads a model over the devices of both, writes what it saw to a file, as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

address, process, directory, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=process)

from easydel import AutoEasyDeLModelForCausalLM, EasyDeLError  # noqa: E402
from easydel.tree import flatten  # noqa: E402

MESHES = {"fsdp": (1, 8, 1, 1), "mixed": (1, 2, 2, 2), "dp": (8, 1, 1, 1)}


def shards(params: Any, original: dict[str, np.ndarray]) -> tuple[int, bool]:
    """Bytes of the distinct parts that this process holds, and whether all are equal to the file's."""
    owned, equal = 0, True
    for path, leaf in flatten(params).items():
        distinct = {str(shard.index): shard for shard in leaf.addressable_shards}
        owned += sum(shard.data.nbytes for shard in distinct.values())
        equal &= all(np.array_equal(shard.data, original[path][shard.index]) for shard in distinct.values())
    return owned, equal


def run() -> dict[str, Any]:
    if mode not in MESHES:
        started = time.monotonic()
        try:
            AutoEasyDeLModelForCausalLM.from_pretrained(directory, auto_shard_params=True)
        except EasyDeLError as error:
            return {"error": str(error), "kind": type(error).__name__, "seconds": time.monotonic() - started}
        return {"error": None}
    _, whole = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    original = {path: np.asarray(leaf) for path, leaf in flatten(whole).items()}
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        directory, auto_shard_params=True, sharding_axis_dims=MESHES[mode]
    )
    owned, equal = shards(params, original)
    ids = np.arange(16, dtype=np.int32).reshape(2, 8)
    logits = jax.jit(lambda p: model.apply(p, ids).logits, out_shardings=replicated(params))(params)
    report = model.load_report
    return {
        "read": report.bytes_read + report.bytes_mapped,
        "owned": owned,
        "equal": equal,
        "logits": float(np.abs(np.asarray(logits) - np.load(f"{directory}/logits.npy")).max()),
    }


def replicated(params: Any) -> Any:
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


Path(sys.argv[5]).write_text(json.dumps(run()))
jax.distributed.shutdown()
