"""Compiles programs for TPUs that are not here: memory, clock cycles and bytes on the wire, beside what they should be.

    python benchmarks/tpu.py [--only decode] [--output benchmarks/results/tpu.json]

Nothing is run: libtpu (`pip install -e ".[tpu-plan]"`) compiles on one core of this machine, 30 minutes for all cases,
and the figures are its own. Cycles leave out Pallas kernels (attention) and the waiting for other chips. Training is
compared with the same step written by hand (yardstick.py), compiled in the same way. Cases that --only leaves out keep
the figures that they have in the output file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measured import Measured, show, write

CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}  # hertz
UNWINDOWED = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
EMBEDDING = ("model/embed_tokens/embedding",)  # of which a step reads a few rows

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_405B = LLAMA_8B | {
    "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
}  # fmt: skip
FOUR_LAYERS = LLAMA_8B | {"num_hidden_layers": 4}
QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
    "num_hidden_layers": 2, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "max_position_embeddings": 4096, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A program, and the most that its figures may be; `x ...` are ratios to those of the case `against`."""

    program: str  # "decode", "prompt", "train" or "yardstick"
    config: dict[str, Any]
    topology: str
    dims: tuple[int, int, int, int]
    batch: int
    length: int
    limits: Mapping[str, float] = field(default_factory=dict)
    against: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)  # of PartitionAxis
    scanned: bool = False


V5E, V5E_16, V5E_64, V5P_8, V5P_512 = "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5p:2x2x2", "v5p:8x8x8"
RATIOS = {"x HBM": 1.03, "x cycles": 1.03, "x sent": 1.05}
CASES = {
    "8B decode, 4 layers, batch 8": Case(
        "decode", FOUR_LAYERS, V5E, (1, 1, 8, 1), 8, 2048, {"temporaries MB": 60, "cycles / memory bound": 1.1}
    ),
    "8B decode, 4 layers, batch 1": Case(
        "decode", FOUR_LAYERS, V5E, (1, 1, 8, 1), 1, 2048, {"cycles / memory bound": 1.2}
    ),
    "8B decode, 4 layers, batch 8, scanned": Case("decode", FOUR_LAYERS, V5E, (1, 1, 8, 1), 8, 2048, scanned=True),
    "8B decode, default mesh": Case("decode", LLAMA_8B, V5E, (1, 8, 1, 1), 8, 2048, {"sent MB a token": 30}),
    "8B decode, sp=8, 131,072 slots": Case("decode", LLAMA_8B, V5E, (1, 1, 1, 8), 1, 131072, {"sent MB a token": 6}),
    **{
        f"8B prompt of 131,072, sp={sp}": Case(
            "prompt",
            LLAMA_8B,
            V5P_8,
            (1, 8 // sp, 1, sp),
            1,
            131072,
            {"x 1/sp": 1.05} if sp > 1 else {},
            against="8B prompt of 131,072, sp=1",
            options=UNWINDOWED,
            scanned=True,
        )
        for sp in (1, 2, 4, 8)
    },
    "8B prompt of 131,072, sp=8, windowed": Case(
        "prompt", LLAMA_8B, V5P_8, (1, 1, 1, 8), 1, 131072, {"x 1/sp": 1.05}, "8B prompt of 131,072, sp=1", scanned=True
    ),
    "8B train, yardstick": Case("yardstick", LLAMA_8B, V5E_16, (1, 16, 1, 1), 16, 4096),
    "8B train": Case("train", LLAMA_8B, V5E_16, (1, 16, 1, 1), 16, 4096, RATIOS, "8B train, yardstick"),
    "8B train, unwindowed yardstick": Case("yardstick", LLAMA_8B, V5E_16, (1, 16, 1, 1), 16, 4096, options=UNWINDOWED),
    "8B train, unwindowed": Case(
        "train", LLAMA_8B, V5E_16, (1, 16, 1, 1), 16, 4096, RATIOS, "8B train, unwindowed yardstick", UNWINDOWED
    ),
    "8B train, fsdp=4 tp=4": Case("train", LLAMA_8B, V5E_16, (1, 4, 4, 1), 16, 4096, {"head GB": 0.8}),
    "405B train, split residual": Case(
        "train", LLAMA_405B, V5P_512, (1, 64, 8, 1), 512, 4096, {"HBM GB": 60}, axes={"activation_hidden_axis": "tp"}
    ),
    "Qwen3-30B-A3B train, 4 layers": Case("train", QWEN3_30B, V5E_64, (1, 64, 1, 1), 64, 4096),
    "Qwen3-30B-A3B decode, 4 layers": Case("decode", QWEN3_30B, V5E_64, (1, 64, 1, 1), 64, 2048),
    "DeepSeek-V3 train, 2 layers": Case("train", DEEPSEEK_V3, V5E_64, (1, 64, 1, 1), 64, 1024),
    "DeepSeek-V3 decode, 2 layers": Case("decode", DEEPSEEK_V3, V5E_64, (1, 64, 1, 1), 64, 2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    before = json.loads(chosen.output.read_text())["raw"] if chosen.output and chosen.output.exists() else {}
    found = {name: before[name] for name in CASES if name in before}
    machine = {"machine": platform.machine(), **{name: version(name) for name in ("jax", "libtpu")}}
    for name, case in CASES.items():
        if chosen.only in name:
            found[name] = figures(case)
            found = {name: found[name] for name in CASES if name in found}
            show(report(found))
            if chosen.output:
                write(chosen.output, report(found), machine, **found)


def figures(case: Case) -> dict[str, Any]:
    """Returns what the compiler says of a program, on each chip."""
    from easydel.aot.cost import bytes_on_each
    from easydel.aot.hlo import collectives, cycles
    from easydel.aot.topology import CHIPS, topology_mesh

    mesh, kind = topology_mesh(case.topology, case.dims), case.topology.partition(":")[0]
    traced, arguments, touched = PROGRAMS[case.program](case, mesh)
    start = time.perf_counter()
    compiled = traced.lower().compile(compiler_options=dict(case.options))
    memory, text = compiled.memory_analysis(), text_of(compiled)
    assert memory is not None
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    sent = None if text is None else collectives(text, mesh.shape)
    head = case.config["vocab_size"] * case.config["hidden_size"] // mesh.shape["tp"]
    return {
        "compiled_in": time.perf_counter() - start,
        "held": {name: bytes_on_each(tree) for name, tree in arguments.items()},
        "temporaries": memory.temp_size_in_bytes,
        "total": memory.argument_size_in_bytes + memory.temp_size_in_bytes + new,
        "memory_seconds": touched / CHIPS[kind].bandwidth,
        "cycles": None if text is None else cycles(text),
        "cycle_seconds": None if text is None else cycles(text) / CLOCK[kind],
        "sent": None if sent is None else sum(one.total for one in sent),
        "sent_for_head": None if sent is None else sum(one.total for one in sent if one.largest >= head),
        "sent_by": None if sent is None else by_kind(sent),
        "collectives": [asdict(one) for one in sorted(sent or (), key=lambda one: -one.total)[:24]],
    }


def by_kind(sent: Sequence[Any]) -> dict[str, int]:
    """Returns the bytes that go over each axis of the mesh, by the kind of collective."""
    found: dict[str, int] = {}
    for one in sent:
        name = f"{one.kind} over {' '.join(one.axes)}"
        found[name] = found.get(name, 0) + one.total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def text_of(compiled: Any) -> str | None:
    import jax

    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:  # as for training on v5p
        return None


def decode(case: Case, mesh: Any) -> tuple[Any, Any, int]:
    from easydel.aot.cost import bytes_on_each
    from easydel.aot.tracing import cache_of, trace_step
    from easydel.tree import flatten

    model, params = model_of(case, mesh, param_dtype="bfloat16", scan_layers=case.scanned)
    arguments = {"parameters": params, "cache": cache_of(model, case.batch, case.length)}
    unread = [flatten(params)[path] for path in EMBEDDING]
    touched = sum(map(bytes_on_each, arguments.values())) - bytes_on_each(unread)
    return trace_step(model, params, case.batch, case.length), arguments, touched


def prompt(case: Case, mesh: Any) -> tuple[Any, Any, int]:
    from easydel.aot.cost import bytes_on_each
    from easydel.aot.tracing import cache_of, trace_prefill

    model, params = model_of(case, mesh, param_dtype="bfloat16", scan_layers=case.scanned)
    touched = bytes_on_each(params) + bytes_on_each(cache_of(model, case.batch, case.length))
    return trace_prefill(model, params, case.batch, case.length), {"parameters": params}, touched


def train(case: Case, mesh: Any) -> tuple[Any, Any, int]:
    import optax

    from easydel.aot.cost import bytes_on_each
    from easydel.aot.tracing import moments_of, trace_training

    model, params = model_of(case, mesh, param_dtype="float32", scan_layers=True, remat="everything")
    optimizer = optax.adamw(1e-4)
    arguments = {"parameters": params, "moments": moments_of(model, params, optimizer)}
    traced = trace_training(model, params, optimizer, case.batch, case.length, clip=1.0)
    return traced, arguments, 2 * sum(map(bytes_on_each, arguments.values()))


def yardstick(case: Case, mesh: Any) -> tuple[Any, Any, int]:
    from yardstick import trace_training

    from easydel.aot.cost import bytes_on_each

    traced, arguments = trace_training(case.config, mesh, case.batch, case.length)
    return traced, arguments, 2 * sum(map(bytes_on_each, arguments.values()))


PROGRAMS: dict[str, Callable[[Case, Any], tuple[Any, Any, int]]] = {
    "decode": decode,
    "prompt": prompt,
    "train": train,
    "yardstick": yardstick,
}


def model_of(case: Case, mesh: Any, *, param_dtype: str, **policy: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    from easydel.aot.tracing import placed_shapes
    from easydel.auto import choose_family
    from easydel.config import HFConfig
    from easydel.model import BaseNNXModule
    from easydel.policy import Policy
    from easydel.sharding import PartitionAxis

    config = HFConfig(dict(case.config))
    family = choose_family(config, encoder_decoder=False)
    config = family.configured(config)
    record, names = family.record(config)
    axes = PartitionAxis(**case.axes).resolve(mesh.axis_names)
    dtypes = {"dtype": jnp.dtype("bfloat16"), "param_dtype": jnp.dtype(param_dtype)}
    model = BaseNNXModule(record, config, Policy(mesh=mesh, axes=axes, **dtypes, **policy), names)
    return model, placed_shapes(model)


def shown(found: Mapping[str, Any], name: str) -> dict[str, float]:
    """Returns the figures that limits are about, by name; those that the compiler did not tell are missing."""
    own = found[name]
    figures = {"temporaries MB": own["temporaries"] / 1e6, "HBM GB": own["total"] / 1e9}
    if own["sent"] is not None:
        figures |= {"sent GB": own["sent"] / 1e9, "head GB": own["sent_for_head"] / 1e9}
        figures |= {"sent MB a token": own["sent"] / CASES[name].batch / 1e6}
        figures |= {"cycles / memory bound": own["cycle_seconds"] / own["memory_seconds"]}
    against = found.get(CASES[name].against or "")
    if against is not None and CASES[name].program == "prompt":
        figures |= {"x 1/sp": tokens_share(name, own) / tokens_share(CASES[name].against or "", against)}
    elif against is not None:
        ratios = {"x HBM": "total", "x cycles": "cycles", "x sent": "sent"}
        figures |= {ratio: own[key] / against[key] for ratio, key in ratios.items()}
    return figures


def tokens_share(name: str, own: Mapping[str, Any]) -> float:
    """Returns the bytes on all chips of a sequence together, beyond the weights that each holds."""
    return (own["total"] - own["held"]["parameters"]) * CASES[name].dims[3]


def report(found: Mapping[str, Any]) -> Measured:
    rows = []
    for name, own in found.items():
        case, figures = CASES[name], shown(found, name)
        mesh = " ".join(
            f"{axis}={size}" for axis, size in zip(("dp", "fsdp", "tp", "sp"), case.dims, strict=True) if size > 1
        )
        known = [f"{own[key] / unit:.{digits}f}" if own[key] is not None else "?" for key, unit, digits in COLUMNS]
        limits = [
            f"{what} {figures[what]:.4g} (at most {most:g})" for what, most in case.limits.items() if what in figures
        ]
        held = all(figures[what] <= most for what, most in case.limits.items() if what in figures)
        verdict = "" if not limits else "yes" if held else "no"
        rows.append(
            [name, f"{case.topology} {mesh}", f"{case.batch} x {case.length}", *known, "; ".join(limits), verdict]
        )
    bars = {name: own["total"] / 1e9 for name, own in found.items()}
    titles = ["case", "mesh", "tokens", "HBM GB", "temporaries MB", "cycles ms", "memory bound ms", "sent GB"]
    notes = [
        "All figures are for one chip and one step, by the compiler. Cycles leave out attention's kernel and waiting "
        "for other chips; the memory bound is for parameters, moments and cache once (twice in training).",
        "Cycles of products that read their kernels from memory are those that XLA takes for 560 GB/s (v5e has 819); "
        "what is fetched meanwhile counts none. Scanned layers fetch nothing before its product.",
        "Bytes that are sent are those of shapes: in a TPU's tiles, one row of bfloat16 has the room of two.",
        "The yardstick is a training step in plain JAX, benchmarks/yardstick.py. Unwindowed: with "
        f"{next(iter(UNWINDOWED))}, which keeps XLA from splitting products into steps of a ring. So are prompts that "
        "are not called windowed.",
        "x 1/sp: memory beyond the weights, times sp, to that of sp=1. It is the cache, and what is computed.",
    ]
    title = "Programs for TPUs: compiled, not run"
    return Measured(title, [*titles, "to show", "holds"], rows, bars, "GB of memory on each chip", notes)


COLUMNS = (
    ("total", 1e9, 2),
    ("temporaries", 1e6, 0),
    ("cycle_seconds", 1e-3, 2),
    ("memory_seconds", 1e-3, 2),
    ("sent", 1e9, 3),
)

if __name__ == "__main__":
    main()
