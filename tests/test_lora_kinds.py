"""Every kind of adapters, computed in three ways: by modules, merged into parameters, and added to tensors as read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import all_cases
from parity import random_ids
from safetensors.numpy import load_file
from test_lora import randomise_adapters
from trained import random_model, small

from easydel import AutoEasyDeLModelForCausalLM
from easydel.errors import ArgumentError, CheckpointError, EasyDeLError, HubError, UnsupportedModelError
from easydel.lora import LoRA, add_adapters, load_adapters, merge_adapters, save_adapters
from easydel.train import init_state, step
from easydel.tree import flatten

CASES = {case.name: case for case in all_cases()}
LLAMA = CASES["llama-plain"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama-plain",
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"0.mlp.*": 3}},
    ),
    "dora, embeddings and head": (
        "llama-plain",
        {"target_modules": ["v_proj", "embed_tokens", "lm_head"], "use_dora": True, "use_rslora": True},
    ),
    "fused": ("gpt2-plain", {"target_modules": ["c_attn"]}),
    "a part of what is fused, and all of it": ("phi3-plain", {"target_modules": ["q_proj", "gate_up_proj"]}),
    "fused, dora": ("gpt2-plain", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "experts": (
        "mixtral-plain",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "experts alone": ("gpt_oss-plain", {"target_modules": [], "target_parameters": ["gate_up_proj"]}),
    "a head of its own, and what is before it": ("bert-untied", {"target_modules": ["transform.dense", "decoder"]}),
    "tied embeddings": ("llama-tied-biased", {"target_modules": ["embed_tokens", "o_proj"]}),
}


def exported(directory: Path, case: str, **choices: Any) -> Any:
    model, _ = random_model(small(CASES[case]), **choices)
    model.export(directory / "base")
    return model


def same_parameters(ours: Any, theirs: Any) -> None:
    left, right = flatten(ours), flatten(theirs)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        np.testing.assert_allclose(np.asarray(right[path], np.float32), leaf, rtol=0, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_merging_and_reading_agree(tmp_path: Path, kind: str):
    case, choice = KINDS[kind]
    if case not in CASES:
        case = next(name for name in CASES if name.startswith(case.partition("-")[0] + "-"))
    ids = random_ids(CASES[case])[:1, :5]
    model = exported(tmp_path, case)
    before = np.asarray(model(ids).logits)
    fresh = add_adapters(model, LoRA(r=2, lora_alpha=5, **choice))
    np.testing.assert_allclose(model.apply(fresh, ids).logits, before, rtol=0, atol=1e-5)
    randomise_adapters(model, fresh)
    adapted = np.asarray(model(ids).logits)
    assert np.abs(adapted - before).max() > 0.05
    save_adapters(model, tmp_path / "adapter")
    read, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    if read.record.head.tied == model.record.head.tied and "tied" not in kind:
        again, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "base")
        load_adapters(again, tmp_path / "adapter")
        same_parameters(merge_adapters(again), params)
        same_parameters(merge_adapters(model), params)
        np.testing.assert_allclose(model(ids).logits, adapted, rtol=0, atol=2e-5)
    else:
        assert not read.record.head.tied
        np.testing.assert_allclose(read(ids).logits, adapted, rtol=0, atol=2e-5)
        with pytest.raises(ArgumentError, match="is the head, too"):
            merge_adapters(model)


def test_fused_adapters_are_the_same_after_another_round(tmp_path: Path):
    model, _ = random_model(small(CASES["gpt2-plain"]))
    randomise_adapters(model, add_adapters(model, LoRA(r=2, target_modules="ALL-linear")))
    save_adapters(model, tmp_path / "one")
    again, _ = random_model(small(CASES["gpt2-plain"]))
    load_adapters(again, tmp_path / "one")
    save_adapters(again, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape[0] == 6
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(two[name], tensor)


def test_what_is_trained_beside_adapters_is_written_and_read(tmp_path: Path):
    """Biases of adapted modules, and whole modules."""
    import optax

    case = next(name for name in CASES if name.startswith("qwen2-"))
    model = exported(tmp_path, case)
    lora = LoRA(r=2, target_modules=["q_proj"], bias="lora_only", modules_to_save=["model.norm"])
    state = init_state(model, add_adapters(model, lora), optax.sgd(0.5))
    trained = {path.split("/", 3)[-1] for path in flatten(state.trained)}
    assert {path.rpartition("/")[2] for path in trained} == {"lora_A", "lora_B", "bias", "scale"}
    before = {path: np.asarray(leaf) for path, leaf in flatten(state.trained).items()}
    state, _ = step(model, optax.sgd(0.5))(state, {"input_ids": random_ids(CASES[case])})
    after = flatten(state.trained)
    assert all(np.any(np.asarray(after[path]) != leaf) for path, leaf in before.items() if "lora_A" not in path)
    save_adapters(model, tmp_path / "adapter", state.params)
    names = {
        name.removeprefix("base_model.model.model.")
        for name in load_file(tmp_path / "adapter/adapter_model.safetensors")
    }
    assert "norm.weight" in names
    assert "layers.0.self_attn.q_proj.base_layer.bias" in names
    assert not any("k_proj" in name or "layernorm" in name for name in names)
    again, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "base")
    params = load_adapters(again, tmp_path / "adapter")
    for path, leaf in flatten(state.params).items():
        np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)
    _, read = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    same_parameters(merge_adapters(again), read)


def test_a_directory_of_adapters_is_a_models_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Also split over devices, in int8, and with a tokenizer's files of its own."""
    model = exported(tmp_path, "llama-plain")
    randomise_adapters(model, add_adapters(model, LoRA(r=2)))
    model.origin = tmp_path / "base"
    save_adapters(model, tmp_path / "adapter")
    (tmp_path / "adapter/tokenizer.json").write_text("{}")
    merged = merge_adapters(model)
    for choices in ({}, {"auto_shard_params": True, "sharding_axis_dims": (1, 2, 2, 2)}, {"scan_layers": True}):
        found, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "adapter", **choices)
        if not choices.get("scan_layers"):
            same_parameters(merged, params)
        found.export(tmp_path / "out")
        assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    int8, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "adapter", load_in_8bit=True)
    path = "model/layers/1/mlp/up_proj/kernel"
    leaves = flatten(int8.params)
    exact, rows = np.asarray(flatten(merged)[path]), np.asarray(leaves[f"{path}_scale"])[:, None]
    assert np.abs(np.asarray(leaves[path]) * rows - exact).max() <= rows.max() * 0.51
    add_adapters(found, LoRA(r=2))
    with pytest.warns(UserWarning, match="other adapters were merged"):
        save_adapters(found, tmp_path / "second")
    assert json.loads((tmp_path / "second/adapter_config.json").read_text())["base_model_name_or_path"] is None
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path is None(.|\n)*--adapter"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "second")
    with pytest.raises(ArgumentError, match="holds adapters itself"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "adapter", adapter=tmp_path / "second")
    found.save_pretrained(tmp_path / "own", merge_adapters(found))
    with pytest.raises(UnsupportedModelError, match="load_adapters"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "own", from_torch=False, adapter=tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(HubError, match=r"its adapters are for \./gone(.|\n)*adapter="):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("case", "choice", "error", "message"),
    [
        ("mixtral-plain", {"target_parameters": ["experts.w9"]}, ArgumentError, r"\['experts.w9'\] name no"),
        (
            "mixtral-plain",
            {"target_parameters": ["experts.down_proj"], "lora_dropout": 0.1},
            ArgumentError,
            "not for experts",
        ),
        ("llama-plain", {"modules_to_save": ["nothing"]}, ArgumentError, r"modules_to_save \['nothing'\] name no"),
        ("llama-tied-biased", {"modules_to_save": ["embed_tokens"]}, ArgumentError, "is also the head"),
    ],
)
def test_adapters_that_peft_could_not_load_are_refused(
    case: str, choice: dict[str, Any], error: type[EasyDeLError], message: str
):
    model, params = random_model(small(CASES[case]))
    with pytest.raises(error, match=message):
        add_adapters(model, LoRA(**choice))
    assert flatten(model.params).keys() == flatten(params).keys()
