"""Configs and files of mixtures of experts and recurrent models as they are on the Hub, and refused ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases.deepseek_v3 import CASES as DEEPSEEK_V3
from cases.deepseek_v4 import CASES as DEEPSEEK_V4
from hub_configs import HUB_CONFIGS
from parity import assert_close, make_reference, random_ids, reference_logits
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM
from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import CheckpointError, ConfigError, UnsupportedModelError
from easydel.families import find_family
from easydel.families.phimoe import SparseMixer
from easydel.layers.mla import MLA
from easydel.layers.mlp import GLU
from easydel.layers.moe import Groups, MoE, TopK
from easydel.model import BaseNNXModule
from easydel.policy import Policy
from easydel.tree import bind, flatten, unflatten

YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
COMMON = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "attention_dropout": 0.0}
MLA_SIZES = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
V2_LITE = {
    **COMMON,
    **MLA_SIZES,
    "aux_loss_alpha": 0.001,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
V3 = V2_LITE | {
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
QWEN3_30B = {
    **COMMON,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "use_sliding_window": False,
}
QWEN15_MOE = {
    **COMMON,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "num_experts": 60,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "use_sliding_window": False,
}
MAMBA_130M = {
    "d_inner": 1536,
    "d_model": 768,
    "fused_add_norm": True,
    "hidden_size": 768,
    "intermediate_size": 1536,
    "n_layer": 24,
    "num_hidden_layers": 24,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "time_step_rank": 48,
    "time_step_scale": 1.0,
    "use_mambapy": False,
}
GLM_ROUTER = TopK(8, True, 2.5, "sigmoid", True, Groups(1, 1, 2))
GLM_FLASH_ROUTER = replace(GLM_ROUTER, k=4, scale=1.8)


def record(model_type: str, config: dict[str, Any]) -> Decoder:
    family = find_family(model_type)
    return family.record(family.configured(HFConfig(config)))[0]


def test_deepseek_v2_lite():
    decoder = record("deepseek_v2", V2_LITE)
    attention = decoder.blocks[0].mixer
    assert isinstance(attention, MLA)
    assert attention.scale == pytest.approx((1 + 0.0707 * np.log(40)) ** 2 * 192**-0.5)
    assert attention.position.gain == 1.0
    assert decoder.blocks[0].ffn == GLU(10944, "silu")
    assert decoder.blocks[1].ffn == MoE(64, GLU(1408, "silu"), TopK(6), GLU(2816, "silu"))


def test_deepseek_v3():
    decoder = record("deepseek_v3", V3)
    router = TopK(8, True, 2.5, "sigmoid", True, Groups(8, 4, 2))
    assert [block.ffn for block in decoder.blocks[3:]] == [MoE(256, GLU(2048, "silu"), router, GLU(2048, "silu"))] * 58


@pytest.mark.parametrize(
    ("model_type", "config", "ffn"),
    [
        ("qwen3_moe", QWEN3_30B, MoE(128, GLU(768, "silu"), TopK(8, True))),
        ("qwen2_moe", QWEN15_MOE, MoE(60, GLU(1408, "silu"), TopK(4), GLU(5632, "silu"), True)),
    ],
)
def test_configs_of_the_hub_are_read_whole(model_type: str, config: dict[str, Any], ffn: MoE):
    assert {block.ffn for block in record(model_type, config).blocks} == {ffn}


@pytest.mark.parametrize(
    ("model_type", "ffn", "rotated"),
    [
        ("glm4_moe", MoE(160, GLU(1536, "silu"), GLM_ROUTER, GLU(1536, "silu")), 64),
        ("minimax_m2", MoE(256, GLU(1536, "silu"), TopK(8, True, 1.0, "sigmoid", True)), 64),
        ("glm4_moe_lite", MoE(64, GLU(1536, "silu"), GLM_FLASH_ROUTER, GLU(1536, "silu")), 64),
        ("ernie4_5_moe", MoE(64, GLU(1536, "silu"), TopK(6, True, corrected=True), GLU(3072, "silu")), 128),
        ("granitemoe", MoE(32, GLU(512, "silu"), TopK(8, True)), 64),
        ("hunyuan_v1_moe", MoE(64, GLU(3072, "silu"), TopK(8, True), GLU(3072, "silu")), 128),
        ("dots1", MoE(128, GLU(1408, "silu"), replace(GLM_ROUTER, k=6), GLU(2816, "silu")), 128),
        ("flex_olmo", MoE(7, GLU(11008, "silu"), TopK(5)), 128),
        ("phimoe", MoE(16, GLU(6400, "silu"), SparseMixer(2, slack=0.02)), 128),
    ],
)
def test_no_key_of_a_config_of_the_hub_is_refused_or_warned_of(model_type: str, ffn: MoE, rotated: int):
    block = record(model_type, HUB_CONFIGS[model_type]).blocks[-1]
    assert (block.ffn, block.mixer.position.dim) == (ffn, rotated)


def test_the_first_mamba_configs_are_read_whole():
    assert len(record("mamba", MAMBA_130M).blocks) == 24


def test_experts_in_every_other_layer():
    ffns = [block.ffn for block in record("deepseek_v2", V2_LITE | {"moe_layer_freq": 2}).blocks]
    assert [isinstance(ffn, MoE) for ffn in ffns[:5]] == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("model_type", "changed", "error", "named"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}, UnsupportedModelError, "norm_topk_prob"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, UnsupportedModelError, "topk_method is 'noaux_tc'"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, UnsupportedModelError, "scoring_func"),
        ("deepseek_v2", {"num_key_value_heads": 4}, UnsupportedModelError, "num_key_value_heads is 4"),
        ("deepseek_v3", {"scoring_func": "softmax"}, UnsupportedModelError, "scoring_func"),
        ("deepseek_v3", {"mlp_bias": True}, UnsupportedModelError, "mlp_bias"),
        ("deepseek_v3", {"n_group": 7}, ConfigError, "256 experts cannot stand in"),
        ("deepseek_v3", {"num_experts_per_tok": 300}, ConfigError, "300 of 128 experts"),
    ],
)
def test_what_is_not_done_is_refused_by_name(model_type: str, changed: dict[str, Any], error: type, named: str):
    with pytest.raises(error, match=named):
        record(model_type, {"deepseek_v2": V2_LITE, "deepseek_v3": V3}[model_type] | changed)


def test_layers_that_predict_further_ahead_are_ignored_and_no_others(tmp_path: Path):
    case = DEEPSEEK_V3[0]
    reference = make_reference(case, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
    ahead = {name.replace("layers.2.", "layers.3."): tensor for name, tensor in last.items()}
    ahead["model.layers.3.eh_proj.weight"] = np.zeros((48, 96), np.float32)
    save_file(tensors | ahead, file, metadata={"format": "pt"})
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(case)
    assert_close(model(ids).logits, reference_logits(reference, ids))
    beyond = {name.replace("layers.3.", "layers.4."): tensor for name, tensor in ahead.items()}
    save_file(tensors | beyond, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.4\.\S+ \[.*has no place in the model"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)


def test_weights_of_streams_sinks_and_norms_are_not_rounded_to_sixteen_bits(tmp_path: Path):
    """transformers keeps them in float32, too: shares of streams are products of them over all layers."""
    make_reference(DEEPSEEK_V4[0], tmp_path)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    leaves = flatten(params)
    exact = {path for path, leaf in leaves.items() if leaf.dtype == np.float32} - model.buffers
    assert exact == {path for path in leaves if re.search("_hc/|stream/|/sinks$|position_bias$|norm/scale$", path)}


def test_deepseek_v4_is_read_by_the_names_and_in_the_numbers_of_its_files_on_the_hub(tmp_path: Path):
    make_reference(replace(DEEPSEEK_V4[0], config=DEEPSEEK_V4[0].config | {"moe_intermediate_size": 32}), tmp_path)
    plain, tensors = tmp_path / "model.safetensors", {}
    expected = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)[1])
    for name, tensor in load_file(plain).items():
        hub = name.removeprefix("model.").replace("embed_tokens", "embed").replace("hc_head.hc_", "hc_head_")
        tensors[hub] = tensor
    tensors |= {"mtp.0.norm.weight": np.zeros(3, np.float32)}
    rng = np.random.default_rng(3)
    codes, scale = rng.integers(0, 256, (48, 16), np.uint8), np.full((48, 1), 2.0**-3)
    numbers = np.stack([codes & 15, codes >> 4], -1).reshape(48, 32).view(ml_dtypes.float4_e2m1fn)
    tensors |= {"layers.1.ffn.experts.4.w2.weight": codes.view(np.int8)}
    tensors |= {"layers.1.ffn.experts.4.w2.scale": scale.astype(ml_dtypes.float8_e8m0fnu)}
    wide = tensors["layers.2.attn.wq_b.weight"].astype(ml_dtypes.float8_e4m3fn)
    tensors |= {"layers.2.attn.wq_b.weight": wide}
    tensors |= {"layers.2.attn.wq_b.scale": np.full((1, 1), 4.0).astype(ml_dtypes.float8_e8m0fnu)}
    save_file(tensors, plain)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"expert_dtype": "fp4"}))
    found = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, dequantize=True)[1])
    expected["model/layers/2/self_attn/q_b_proj/kernel"] = wide.astype(np.float32) * 4
    experts = np.array(expected["model/layers/1/mlp/experts/down_proj/kernel"])
    experts[4] = numbers.astype(np.float32) * scale
    expected["model/layers/1/mlp/experts/down_proj/kernel"] = experts
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_correction_is_float32_in_a_model_of_16_bits(tmp_path: Path):
    make_reference(DEEPSEEK_V3[0], tmp_path)
    _, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, param_dtype=jnp.bfloat16)
    gate = params["model"]["layers"]["1"]["mlp"]["gate"]
    assert (gate["kernel"].dtype, gate["correction_bias"].dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("float32", [True, False])
def test_mamba_adds_up_in_float32_if_its_config_says_so(float32: bool):
    sizes = {"vocab_size": 11, "hidden_size": 16, "state_size": 2, "num_hidden_layers": 2, "residual_in_fp32": float32}
    half = jnp.dtype(jnp.bfloat16)
    model = BaseNNXModule(record("mamba", sizes), HFConfig(sizes), Policy(dtype=half, param_dtype=half))
    bind(model, unflatten({path: jnp.ones(leaf.shape, leaf.dtype) for path, leaf in flatten(model.params).items()}))
    hidden, _ = model.model(jnp.ones((1, 3), jnp.int32))
    assert hidden.dtype == (jnp.float32 if float32 else half)
    assert model(jnp.ones((1, 3), jnp.int32)).logits.dtype == half
