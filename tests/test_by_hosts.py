"""Many hosts together read a file about once, however its matrices are split over their devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import invoke, invoke_json
from headers import write_headers
from jax.sharding import AbstractMesh

from easydel.families import find_family
from easydel.loading import build_model
from easydel.policy import Policy
from easydel.prepare import plan_for
from easydel.quantize import Int8
from easydel.sharding import AXES, PartitionAxis, default_rules, shardings
from easydel.sharding.hosts import Hosts, spec_of
from easydel.source import open_source
from easydel.tree import flatten
from easydel.weights.by_hosts import ByHosts
from easydel.weights.explain import read_steps

HOSTS, MESH = 64, "1,64,8,1"
D, HIDDEN, VOCAB, LAYERS = 16384, 53248, 128256, 126
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
KERNELS = {
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (1024, D),
    "self_attn.v_proj": (1024, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (HIDDEN, D),
    "mlp.up_proj": (HIDDEN, D),
    "mlp.down_proj": (D, HIDDEN),
}
IN_4_BITS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128},
        }
    },
}
Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


def tensors(layers: int = LAYERS, *, packed: bool = False) -> Tensors:
    yield "model.embed_tokens.weight", "BF16", (VOCAB, D)
    yield "lm_head.weight", "BF16", (VOCAB, D)
    yield "model.norm.weight", "BF16", (D,)
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", "BF16", (D,)
        for name, (rows, columns) in KERNELS.items():
            path = f"model.layers.{layer}.{name}"
            if not packed:
                yield f"{path}.weight", "BF16", (rows, columns)
                continue
            yield f"{path}.weight_packed", "I32", (rows, columns // 8)
            yield f"{path}.weight_scale", "BF16", (rows, columns // 128)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3.1 405B: 812 GB of nothing."""
    return write_headers(tmp_path_factory.mktemp("floats"), CONFIG, tensors(), shards=191)


@pytest.fixture(scope="module")
def in_4_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIG | {"quantization_config": IN_4_BITS}
    return write_headers(tmp_path_factory.mktemp("4-bits"), config, tensors(packed=True), shards=50)


def planned(directory: Path, *choices: str) -> Any:
    return invoke_json("plan", directory, "--mesh", MESH, "--hosts", HOSTS, "--param-dtype", "bf16", *choices)["host"]


def planned_reads(directory: Path, quantize: Int8 | None) -> ByHosts:
    """Returns the reads of a load by hosts whose devices are those along tp."""
    mesh = AbstractMesh((1, HOSTS, 8, 1), AXES)
    source, found = open_source(directory, saved=False), find_family("llama")
    model = build_model(found, found.configured(source.config), Policy(), source)
    plan, forms = plan_for(model, source, quantize)
    leaves = flatten(model.params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    placed, _ = shardings(shapes, mesh, default_rules(PartitionAxis()), strict=False)
    splits = {path: spec_of(placed[path], len(shape)) for path, shape in shapes.items()}
    return ByHosts(plan, splits, forms, Hosts.planned(mesh, HOSTS))


@pytest.mark.parametrize("choices", [(), ("--int8",), ("--int4",), ("--scan-layers",)], ids=str)
def test_each_of_64_hosts_reads_its_share_of_a_model_of_405_billion_parameters(floats: Path, choices: tuple[str, ...]):
    host = planned(floats, *choices)
    size = sum(2 * int(np.prod(shape)) for _, _, shape in tensors())
    assert host["parts"] == pytest.approx(size / HOSTS, rel=0.01)
    assert host["parts"] <= host["reads"] < 1.15 * host["parts"]
    assert host["memory"] < (12 << 30 if choices == ("--scan-layers",) else 1 << 30)


def test_codes_of_4_bits_are_read_once_too(in_4_bits: Path):
    host = planned(in_4_bits)
    assert host["parts"] <= host["reads"] < 1.15 * host["parts"]


def test_columns_of_a_file_that_are_rows_of_a_parameter_are_not_dealt_to_hosts(tmp_path: Path):
    """GPTQ's files are transposed: where hosts share the columns of a kernel, each has rows of the file already."""
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}

    def of_gptq() -> Tensors:
        for name, dtype, shape in tensors(1):
            if len(shape) == 1 or not name.startswith("model.layers"):
                yield name, dtype, shape
                continue
            stem, (rows, columns) = name.removesuffix(".weight"), shape
            yield f"{stem}.qweight", "I32", (columns // 8, rows)
            yield f"{stem}.scales", "BF16", (columns // 128, rows)

    write_headers(tmp_path, CONFIG | {"num_hidden_layers": 1, "quantization_config": quantized}, of_gptq(), shards=1)
    by_hosts = planned_reads(tmp_path, None)
    splits = {path: spec for path, spec in by_hosts.splits.items() if "/layers/" in path}
    columns = {path for path, spec in splits.items() if by_hosts.hosts.share(spec[-1:]) < 1}
    assert len(columns) == 10
    assert not columns & by_hosts.otherwise().keys()


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "int8"])
def test_what_a_host_reads_lies_together_in_the_file(tmp_path: Path, rounded: bool):
    """Of one layer: the spans of all reads are as large as what is in them. A host's devices are those along tp."""
    write_headers(tmp_path, CONFIG | {"num_hidden_layers": 1}, tensors(1), shards=1)
    by_hosts = planned_reads(tmp_path, Int8() if rounded else None)
    plan, splits, hosts = by_hosts.plan, by_hosts.splits, by_hosts.hosts
    spans = parts = 0
    for path, spec in ({**splits} | by_hosts.otherwise()).items():
        if path in plan.expressions:
            counts = {
                path: [*(hosts.parts((axis,)) for axis in spec[:-1]), 1 if spec[-1] == "tp" else hosts.parts(spec[-1:])]
            }
            one = replace(plan, expressions={path: plan.expressions[path]})
            for step in read_steps(one, counts, {path: np.dtype("bfloat16")}):
                spans, parts = spans + step.stop - step.start, parts + step.nbytes
    assert parts == sum(2 * int(np.prod(shape)) for _, _, shape in tensors(1))
    assert spans < 1.01 * parts


def test_hosts_share_devices_equally(floats: Path):
    result = invoke("plan", floats, "--mesh", MESH, "--hosts", 3)
    assert result.exit_code == 2
    assert "512 devices cannot be dealt to 3 hosts" in result.stderr
    compiled = invoke("plan", floats, "--compile", "v5e:2x2", "--generate", "1,128", "--hosts", 2)
    assert "--hosts is about loading" in compiled.stderr
