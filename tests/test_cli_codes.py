"""`easydel inspect` of quantized checkpoints: method, bits, blocks, which tensors are coded, and bytes."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from commands import invoke, invoke_json
from safetensors.numpy import save_file

from easydel.source import open_source

FORMATS = Path(__file__).parent / "formats"
STORED = {
    "awq_gemm_g128_llama": ("awq", "uint4", [1, 128], 4.16),
    "bitnet_bitlinear_llama": ("bitnet", "int2", None, 2.0),
    "bnb_nf4_double_llama": ("bitsandbytes", "uint4", [1, 64], None),
    "ct_nvfp4_llama": ("compressed-tensors", "float4_e2m1fn", [1, 16], 4.5),
    "ct_w4a16_g32_asym_llama": ("compressed-tensors", "uint4", [1, 32], None),
    "fp8_block128_odd_llama": ("fp8", "float8_e4m3fn", None, 8.0),
    "gptq_b4_g32_actorder_asym_llama": ("gptq", "uint4", [1, 32], None),
    "mlx_q4_g64_qwen3_moe": ("mlx", None, [1, 64], None),
    "modelopt_int4_awq_llama": ("modelopt", "int4", [1, 128], None),
}


@pytest.mark.parametrize("kind", STORED)
def test_inspect_shows_how_weights_are_stored(kind: str):
    method, code, block, bits = STORED[kind]
    found = invoke_json("inspect", FORMATS / kind)["quantization"]
    rows = found["tensors"]
    assert found["method"] == method
    assert code is None or {row["code"] for row in rows} == {code}
    assert block is None or all(row["block"] == block for row in rows)
    assert bits is None or found["bits_per_weight"] == pytest.approx(bits, abs=0.01)
    assert sum(row["numbers"] for row in rows) * found["bits_per_weight"] / 8 == pytest.approx(
        sum(row["bytes"] for row in rows), rel=0.01
    )
    tensors = open_source(FORMATS / kind, saved=False).tensors.values()
    assert found["bytes_as_bfloat16"] == 2 * sum(prod(tensor.shape) for tensor in tensors)
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors)


def test_inspect_prints_them_as_a_table():
    shown = invoke("inspect", FORMATS / "fp8_block128_odd_llama").stdout
    assert "quantized by     fp8" in shown
    assert "KiB as bfloat16 (56%)" in shown
    assert "model.layers.*.mlp.up_proj.weight      | float8_e4m3fn | 128 x 128 |    8 |     2" in shown


def test_inspect_tells_rows_of_a_block_that_lie_apart():
    checkpoint = FORMATS / "hqq_b4_axis0_llama"
    found = {row["name"]: row for row in invoke_json("inspect", checkpoint)["quantization"]["tensors"]}
    down = found["model.layers.*.mlp.down_proj.weight"]
    assert (down["block"], down["step"]) == ([8, 1], 4)
    assert "| 8 x 1, rows 4 apart" in invoke("inspect", checkpoint).stdout


def test_a_matrix_without_numbers_has_no_bits(tmp_path: Path):
    codes, empty = np.zeros((0, 8), np.int32), np.zeros((0, 8), np.float16)
    save_file({"a.qweight": codes, "a.qzeros": codes[:, :1], "a.scales": empty}, tmp_path / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    assert invoke_json("inspect", tmp_path)["quantization"] is None
