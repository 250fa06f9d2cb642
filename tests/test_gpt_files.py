"""Files and configs of GPT's relatives as they are on the Hub, which transformers no longer writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import Case, all_cases
from parity import assert_close, make_reference, random_ids, reference_logits
from safetensors.numpy import load_file, save_file
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from easydel import AutoEasyDeLModelForCausalLM
from easydel.config import HFConfig
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.families import find_family
from easydel.families.falcon import ScaledALiBi
from easydel.layers.attention import ALiBi
from easydel.layers.context import Context

CASES = {case.name: case for case in all_cases()}
LAYERS, POSITIONS = range(3), 64
Tensors = dict[str, np.ndarray]


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_buffers(tensors: Tensors, prefix: str, *, rotary: bool = False) -> Tensors:
    """With the causal mask and its value in every layer, as files had them until 2022."""
    mask = np.tril(np.ones((1, 1, POSITIONS, POSITIONS), np.uint8))
    for layer in LAYERS:
        buffers = {"bias": mask, "masked_bias": np.array(-1e9, np.float32)}
        buffers |= {"rotary_emb.inv_freq": np.ones(2, np.float32)} if rotary else {}
        tensors |= {f"{prefix.format(layer)}.{name}": value for name, value in buffers.items()}
    return tensors


def as_gpt2(tensors: Tensors) -> Tensors:
    return with_buffers(without_prefix(tensors), "h.{}.attn")


def as_neox(tensors: Tensors) -> Tensors:
    assert "embed_out.weight" in tensors
    return with_buffers(tensors, "gpt_neox.layers.{}.attention", rotary=True)


def with_new_head_name(tensors: Tensors) -> Tensors:
    return {name.replace("embed_out", "lm_head"): tensor for name, tensor in tensors.items()}


def with_copied_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].copy()}


def without_model(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2-plain", as_gpt2),
        ("gpt_neo-irregular", partial(with_buffers, prefix="transformer.h.{}.attn.attention")),
        ("gptj-plain", partial(with_buffers, prefix="transformer.h.{}.attn")),
        ("gpt_bigcode-multi-query", partial(with_buffers, prefix="transformer.h.{}.attn")),
        ("gpt_neox-parallel", as_neox),
        ("gpt_neox-parallel", with_new_head_name),
        ("bloom-plain", without_prefix),
        ("falcon-multi-query", with_copied_head),
        ("opt-plain", without_model),
    ],
)
def test_file_as_on_the_hub_gives_the_same_logits(name: str, change: Callable[[Tensors], Tensors], tmp_path: Path):
    reference = make_reference(CASES[name], tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(change(load_file(file)), file)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(CASES[name])
    assert_close(model(ids).logits, reference_logits(reference, ids))


def test_parts_of_a_fused_kernel_keep_their_precision_in_an_export(tmp_path: Path):
    make_reference(CASES["gpt2-plain"], tmp_path)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        tmp_path, param_dtype="bfloat16", load_in_8bit=True, bit_targeted_params=["v_proj"]
    )
    model.export(tmp_path / "exported", dtype="float32")
    fused = load_file(tmp_path / "exported" / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    v_proj = params["model"]["layers"]["0"]["self_attn"]["v_proj"]
    exact = np.asarray(v_proj["kernel"] * v_proj["kernel_scale"][:, None])
    np.testing.assert_array_equal(np.split(fused.T, 3)[2], exact)


@pytest.mark.parametrize(("q", "v"), [("bfloat16", "float16"), ("float16", "float32"), ("bfloat16", "float32")])
def test_parts_of_different_dtypes_lose_nothing_in_one_exported_kernel(tmp_path: Path, q: str, v: str):
    make_reference(CASES["gpt2-plain"], tmp_path)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    attention = params["model"]["layers"]["0"]["self_attn"]
    for part, dtype in (("q_proj", q), ("k_proj", q), ("v_proj", v)):
        attention[part]["kernel"] = np.asarray(attention[part]["kernel"]).astype(np.dtype(dtype))
    model.export(tmp_path / "exported", params)
    fused = load_file(tmp_path / "exported" / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    assert fused.dtype == np.float32
    exact = [np.asarray(attention[part]["kernel"], np.float32) for part in ("q_proj", "k_proj", "v_proj")]
    np.testing.assert_array_equal(fused.T, np.concatenate(exact))


def test_mpt_biases_are_as_steep_as_the_config_says(tmp_path: Path):
    """transformers 5.23 reads `alibi_bias_max` and does not use it; MPT-7b-StoryWriter was trained with 16."""
    plain = CASES["mpt-plain"]
    case = Case("mpt-steep", "mpt", plain.config | {"attn_config": {"alibi_bias_max": 16}})
    reference = make_reference(case, tmp_path)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(case)
    reference.transformer.build_mpt_alibi_tensor = lambda heads, length, device=None: build_mpt_alibi_tensor(
        heads, length, 16, device
    )
    assert_close(model(ids).logits, reference_logits(reference, ids))


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 31, 71])
def test_alibi_slopes_are_those_of_bloom_and_mpt(heads: int):
    slopes = ALiBi(heads).slopes()
    np.testing.assert_allclose(slopes, _get_alibi_slopes(heads, torch.device("cpu")), rtol=1e-6)
    np.testing.assert_allclose(slopes, -build_mpt_alibi_tensor(heads, 2)[:, 0, 0], rtol=1e-6)


def test_falcon_biases_are_rounded_as_transformers_rounds_them():
    mask = np.ones((2, 700), np.int64)
    mask[1, :90] = 0
    theirs = build_alibi_tensor(torch.tensor(mask), 6, torch.float32).reshape(2, 6, 1, 700) / 4
    context = Context(jnp.asarray(mask), valid_BS=jnp.asarray(mask, bool))
    np.testing.assert_array_equal(ScaledALiBi(6, head_dim=16).bias(context, 700), theirs)


TRAINING = {"use_cache": True, "transformers_version": "4.30.0", "torch_dtype": "float16", "initializer_range": 0.02}
HUB = {
    "gpt2": {
        "n_ctx": 1024,
        "attn_pdrop": 0.1,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "reorder_and_upcast_attn": True,
    },
    "gpt_neo": {
        "attention_layers": ["global", "local"] * 12,
        "attention_types": [[["global", "local"], 12]],
        "embed_dropout": 0.1,
        "gradient_checkpointing": False,
        "summary_use_proj": True,
    },
    "gpt_neox": {"attention_probs_dropout_prob": 0, "rotary_pct": 0.25, "rotary_emb_base": 10000, "rope_scaling": None},
    "gptj": {
        "rotary": True,
        "scale_attn_weights": True,
        "n_inner": None,
        "embd_pdrop": 0.1,
        "tie_word_embeddings": False,
    },
    "gpt_bigcode": {
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "inference_runner": 0,
        "max_batch_size": None,
        "pad_key_length": True,
        "pre_allocate_kv_cache": False,
        "validate_runner_input": True,
    },
    "falcon": {"alibi": True, "apply_residual_connection_post_layernorm": False, "ff_factor": 4, "n_embed": 4544},
    "bloom": {
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "masked_softmax_fusion": True,
        "n_embed": 64,
        "num_attention_heads": 8,
        "offset_alibi": 100,
        "pretraining_tp": 2,
        "seq_length": 2048,
        "skip_bias_add": True,
        "unk_token_id": 0,
    },
    "mpt": {
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_impl": "torch",
            "attn_pdrop": 0,
            "attn_type": "multihead_attention",
            "attn_uses_sequence_id": False,
            "clip_qkv": None,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "embedding_fraction": 1.0,
        "init_config": {"name": "kaiming_normal_", "init_gain": 0},
        "init_device": "cpu",
        "learned_pos_emb": True,
        "logit_scale": None,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "tokenizer_name": "gpt-neox",
        "verbose": 0,
    },
    "opt": {"activation_dropout": 0.0, "layerdrop": 0.0, "prefix": "</s>", "learned_embeddings": True},
}


def record(model_type: str, **config: Any) -> Any:
    family = find_family(model_type)
    return family.record(family.configured(HFConfig({"model_type": model_type, **config})))[0]


@pytest.mark.parametrize("model_type", HUB)
def test_config_as_on_the_hub_is_read_without_a_warning(model_type: str):
    assert record(model_type, **TRAINING, **HUB[model_type]).blocks


@pytest.mark.parametrize(
    ("model_type", "config", "named"),
    [
        ("mpt", {"attn_config": {"alibi": False}}, "alibi is False"),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type is 'multiquery_attention'"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix_lm is True"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln is True"),
        ("mpt", {"attn_config": {"attn_uses_sequence_id": True}}, "attn_uses_sequence_id is True"),
        ("mpt", {"no_bias": False}, "no_bias is False"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale is 'inv_sqrt_d_model'"),
        ("mpt", {"embedding_fraction": 0.5}, "embedding_fraction is 0.5"),
        ("falcon", {"apply_residual_connection_post_layernorm": True}, "the places of residuals and norms"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
        ("gpt_neo", {"attention_layers": ["sparse"] * 24}, "attention types sparse"),
        ("gptj", {"scale_attn_by_inverse_layer_idx": True}, "scales of queries or embeddings"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(model_type: str, config: dict[str, Any], named: str):
    with pytest.raises(UnsupportedModelError, match=named.replace(".", r"\.")):
        record(model_type, **config)


def test_gpt_neo_needs_a_type_for_each_layer():
    with pytest.raises(ConfigError, match="attention types for 24 of 3 layers"):
        record("gpt_neo", num_layers=3)
