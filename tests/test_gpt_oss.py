"""GPT-OSS as its files are on the Hub: a config with OpenAI's own keys, and experts in MXFP4."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cases.gpt_oss import CASES as GPT_OSS
from hub_server import Repo, serving
from parity import assert_close, make_reference, random_ids, reference_logits
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM
from easydel.checkpoint import open_checkpoint
from easydel.config import HFConfig
from easydel.errors import CheckpointError
from easydel.families import find_family
from easydel.families.gpt_oss import ClampedGLU
from easydel.layers.moe import MoE, TopK
from easydel.layers.rope import Rope, Yarn
from easydel.tree import flatten
from easydel.weights.formats import unpacked

WHOLE = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
PACKED = {"modules_to_not_convert": WHOLE, "quant_method": "mxfp4"}
EXPERTS = "model.layers.1.mlp.experts.down_proj"
CASE = replace(GPT_OSS[0], config=GPT_OSS[0].config | {"hidden_size": 64, "intermediate_size": 96})
OSS_20B = {
    "attention_bias": True,
    "attention_dropout": 0.0,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 201088,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose experts are random bits, with exponents that make them about as large as weights are."""
    directory, random = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    make_reference(CASE, directory)
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = random.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = random.integers(122, 127, (experts, outputs, inputs // 32), np.uint8)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": PACKED}))
    return directory


@pytest.fixture(scope="module")
def params(packed: Path) -> dict[str, Any]:
    return flatten(AutoEasyDeLModelForCausalLM.from_pretrained(packed, dequantize=True)[1])


def test_the_config_of_the_hub_is_read_whole():
    family = find_family("gpt_oss")
    with warnings.catch_warnings(action="error"):
        decoder, _ = family.record(family.configured(HFConfig(OSS_20B)))
    expert = ClampedGLU(2880, "silu", bias=True, alpha=1.702, limit=7.0)
    assert {block.ffn for block in decoder.blocks} == {MoE(32, expert, TopK(4, renormalize=True, bias=True))}
    assert [block.mixer.sight.window for block in decoder.blocks] == [128, None] * 12
    gain = 0.1 * np.log(32) + 1
    assert decoder.blocks[0].mixer.position == Rope(64, 150000.0, Yarn(32.0, 4096, 32.0, 1.0, False), gain)


def test_packed_experts_are_what_transformers_makes_of_them(packed: Path, tmp_path: Path):
    auto = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(packed, dtype=torch.float32, attn_implementation="eager").eval()
    ids = random_ids(CASE)
    expected = reference_logits(theirs, ids)
    for how in ({"scan_layers": True}, {}):
        model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(packed, **how)
        assert_close(model(ids).logits, expected)
    model.export(tmp_path / "exported")
    again = auto.from_pretrained(tmp_path / "exported", dtype=torch.float32, attn_implementation="eager").eval()
    np.testing.assert_array_equal(reference_logits(again, ids), expected)


def test_packed_experts_over_a_mesh(packed: Path, params: dict[str, Any]):
    mesh = {"sharding_axis_dims": (1, 2, 2, -1), "auto_shard_params": True}
    leaves = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(packed, dequantize=True, **mesh)[1])
    assert leaves.keys() == params.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)


def test_packed_experts_are_streamed(
    packed: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with serving(monkeypatch, tmp_path) as hub:
        hub.repos["org/model"] = Repo({file.name: file.read_bytes() for file in packed.iterdir()})
        leaves = flatten(AutoEasyDeLModelForCausalLM.from_pretrained("org/model", stream=True, dequantize=True)[1])
    assert leaves.keys() == params.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)


def test_packed_experts_as_int8(packed: Path, params: dict[str, Any]):
    leaves = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(packed, load_in_8bit=True)[1])
    path = "model/layers/1/mlp/experts/down_proj/kernel"
    values = leaves[path] * leaves[f"{path}_scale"][..., None]
    assert leaves[path].dtype == np.int8
    np.testing.assert_allclose(values, params[path], atol=float(np.abs(params[path]).max()) / 250)


@pytest.mark.parametrize("index", [(), (slice(1, 3), slice(40, 71), slice(5, 6)), (slice(0, 1), slice(64, 64))])
def test_any_part_of_a_packed_tensor_can_be_read(packed: Path, index: tuple[slice, ...]):
    tensor = unpacked(PACKED, open_checkpoint([packed / "model.safetensors"]), None)[EXPERTS]
    np.testing.assert_array_equal(tensor.read(index), tensor.read()[index])


def without_scales(tensors: dict[str, np.ndarray]) -> None:
    del tensors[f"{EXPERTS}_scales"]


def other_blocks(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{EXPERTS}_blocks"] = tensors[f"{EXPERTS}_blocks"][:-1]


def floats(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{EXPERTS}_scales"] = tensors[f"{EXPERTS}_scales"].astype(np.float32)


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{EXPERTS}_scales"][2, 3, 1] = 255


def no_blocks(tensors: dict[str, np.ndarray]) -> None:
    del tensors[f"{EXPERTS}_blocks"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without_scales, "has no model.layers.1.mlp.experts.down_proj_scales beside it"),
        (no_blocks, "is missing"),
        (other_blocks, r"is \[4, 64, 3, 16\], its scales are \[5, 64, 3\]"),
        (floats, "is uint8, its scales are float32, expected uint8 for both"),
        (not_a_number, "NaN or Inf"),
    ],
)
def test_damaged_packs_are_refused(packed: Path, tmp_path: Path, damage: Callable[..., None], told: str):
    tensors = load_file(packed / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((packed / "config.json").read_text())
    with pytest.raises(CheckpointError, match=told) as caught:
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    assert EXPERTS in str(caught.value)
    assert caught.value.file == str(tmp_path / "model.safetensors")
