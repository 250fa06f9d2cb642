"""Adapters in files, as PEFT 0.21 takes and writes them. PEFT is not installed here: its rules are written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import all_cases
from safetensors.numpy import load_file, save_file
from trained import random_model

from easydel.errors import CheckpointError, UnsupportedModelError
from easydel.families import all_families
from easydel.families._experts import FUSED_BY_PEFT
from easydel.lora import LoRA, add_adapters, load_adapters, save_adapters

CASES = {case.name: case for case in all_cases()}


def saved_config(directory: Path, case: str, targets: list[str]) -> dict[str, Any]:
    model, _ = random_model(CASES[case])
    add_adapters(model, LoRA(r=2, target_modules=targets))
    save_adapters(model, directory)
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    ("case", "targets", "task"),
    [("llama-plain", ["q_proj"], "CAUSAL_LM"), ("t5-tied", ["q", "wi"], "SEQ_2_SEQ_LM")],
)
def test_the_task_in_a_file_is_the_models(tmp_path: Path, case: str, targets: list[str], task: str):
    assert saved_config(tmp_path, case, targets)["task_type"] == task


@pytest.mark.parametrize(
    ("case", "targets", "lost"),
    [
        # the first layer is dense, the others have experts that are shared
        ("deepseek_v3-groups", ["q_a_proj", "down_proj"], "mlp.down_proj"),
        ("deepseek_v2-greedy", ["o_proj", "gate_proj", "up_proj"], "mlp.shared_experts.gate_proj"),
        ("qwen3_moe-renormalized-biased-sliding-dense-first", ["v_proj", "up_proj"], "mlp.up_proj"),
    ],
)
def test_what_peft_takes_for_parts_of_experts_is_told(tmp_path: Path, case: str, targets: list[str], lost: str):
    with pytest.warns(UserWarning, match=rf"PEFT(.|\n)*load_adapters(.|\n)*layers\.0\.{lost}") as told:
        saved_config(tmp_path, case, targets)
    assert targets[0] not in str(told[0].message)


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        ("deepseek_v3-groups", ["q_a_proj", "o_proj"]),
        ("qwen2_moe-plain", ["down_proj", "up_proj", "gate_proj"]),  # PEFT has no mapping for the type itself
        ("mixtral-plain", ["q_proj"]),
        ("qwen3-plain", ["down_proj"]),
    ],
)
def test_nothing_is_told_of_adapters_that_peft_loads(tmp_path: Path, case: str, targets: list[str]):
    saved_config(tmp_path, case, targets)  # warnings are errors


def test_every_model_type_whose_experts_peft_looks_for_is_known():
    """PEFT goes by this table of transformers; and by Mixtral's, in whose names (w1, w2, w3) no Linear here ends."""
    from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN as FORMS

    fused = {family.name for family in all_families() if FORMS.get(family.model_type) == "qwen2_moe"}
    assert fused
    assert {family.name for family in all_families() if family.peft_lacks == FUSED_BY_PEFT} == fused


@pytest.mark.parametrize("case", ["mamba-plain", "falcon_mamba-plain"])
def test_that_peft_refuses_mambas_output_is_told(tmp_path: Path, case: str):
    with pytest.warns(UserWarning, match=r"PEFT(.|\n)*layers\.0\.mixer\.out_proj") as told:
        saved_config(tmp_path, case, ["in_proj", "out_proj"])
    assert "in_proj" not in str(told[0].message)
    saved_config(tmp_path, case, ["in_proj"])  # warnings are errors


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"use_bdlora": {"nblocks": 2}},
        {"kasa_config": {"beta": 1e-4}},
        {"velora_config": {"num_groups": 32}},
        {"monteclora_config": {"num_samples": 8}},
        {"arrow_config": {"top_k": 3}},
    ],
)
def test_variants_that_compute_something_else_are_refused(tmp_path: Path, change: dict[str, Any]):
    saved_config(tmp_path, "llama-plain", ["q_proj"])
    change_config(tmp_path, **dict.fromkeys(change, None))  # what PEFT writes where it is off
    load_adapters(random_model(CASES["llama-plain"])[0], tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(UnsupportedModelError, match=next(iter(change))):
        load_adapters(random_model(CASES["llama-plain"])[0], tmp_path)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_starts_that_leave_the_base_as_it_is_are_accepted(tmp_path: Path, start: bool | str):
    saved_config(tmp_path, "llama-plain", ["q_proj"])
    change_config(tmp_path, init_lora_weights=start)
    params = load_adapters(random_model(CASES["llama-plain"])[0], tmp_path)
    assert "lora_A" in params["model"]["layers"]["0"]["self_attn"]["q_proj"]


def rewritten(directory: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    file = directory / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def test_adapters_of_some_scanned_layers_are_refused_with_what_to_do(tmp_path: Path):
    """What layers_to_transform=[1] makes."""
    saved_config(tmp_path, "llama-plain", ["q_proj"])
    rewritten(tmp_path, lambda tensors: {name: values for name, values in tensors.items() if ".layers.1." in name})
    with pytest.raises(UnsupportedModelError, match=r"in part(.|\n)*self_attn/q_proj(.|\n)*without scan_layers"):
        load_adapters(random_model(CASES["llama-plain"], scan_layers=True)[0], tmp_path)
    load_adapters(random_model(CASES["llama-plain"])[0], tmp_path)


@pytest.mark.parametrize(
    ("case", "targets", "module", "leaf"),
    [
        ("mixtral-plain", ["q_proj"], "model.layers.0.mlp.gate", "lora_A.weight"),
        ("mamba-plain", ["in_proj"], "backbone.layers.0.mixer.x_proj", "lora_B.weight"),
        ("mixtral-plain", ["q_proj"], "model.layers.0.block_sparse_moe.experts.1.w3", "lora_A.weight"),
        ("llama-plain", ["q_proj"], "model.embed_tokens", "token_adapter.trainable_tokens_delta"),
        ("llama-tied-biased", ["q_proj"], "lm_head", "lora_A.weight"),
    ],
)
def test_modules_of_the_model_that_cannot_be_adapted_are_named(
    tmp_path: Path, case: str, targets: list[str], module: str, leaf: str
):
    saved_config(tmp_path, case, targets)
    rewritten(tmp_path, lambda tensors: tensors | {f"base_model.model.{module}.{leaf}": np.ones((2, 48), np.float32)})
    with pytest.raises(UnsupportedModelError, match=rf"cannot have adapters(.|\n)*{module}") as caught:
        load_adapters(random_model(CASES[case])[0], tmp_path)
    assert "another model" not in str(caught.value)


HEAD = "base_model.model.lm_head.base_layer.weight"


@pytest.mark.parametrize("choices", [{}, {"int8": True}, {"param_dtype": "bfloat16"}], ids=str)
def test_a_copy_of_the_head_beside_its_adapters_is_the_models(tmp_path: Path, choices: dict[str, Any]):
    """PEFT writes one where lm_head is a target, in the dtype that its model had."""
    saved_config(tmp_path, "llama-plain", ["q_proj", "lm_head"])
    head = np.asarray(random_model(CASES["llama-plain"])[0].params["lm_head"]["kernel"])
    rewritten(tmp_path, lambda tensors: tensors | {HEAD: head})
    model, _ = random_model(CASES["llama-plain"], **choices)
    assert "lora_A" in load_adapters(model, tmp_path)["lm_head"]
    for other in (head + np.eye(*head.shape, dtype=np.float32), head[1:]):
        rewritten(tmp_path, lambda tensors, other=other: tensors | {HEAD: other})
        model, _ = random_model(CASES["llama-plain"], **choices)
        with pytest.raises(CheckpointError, match=r"lm_head\.base_layer\.weight(.|\n)*differs from the model's"):
            load_adapters(model, tmp_path)
        assert "lora_A" not in model.params["lm_head"]


def test_a_copy_in_fewer_bits_is_the_models_rounded(tmp_path: Path):
    saved_config(tmp_path, "llama-plain", ["lm_head"])
    model, _ = random_model(CASES["llama-plain"])
    head = np.asarray(model.params["lm_head"]["kernel"])
    rewritten(tmp_path, lambda tensors: tensors | {HEAD: head.astype(np.float16)})
    assert "lora_A" in load_adapters(model, tmp_path)["lm_head"]
