"""Adapters: their results, their files, and that nothing else learns."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from cases import all_cases
from cases.llama import llama
from parity import assert_close, make_reference, random_ids, reference_logits
from safetensors.numpy import load_file, save_file
from trained import random_model, small

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.errors import ArgumentError, CheckpointError, EasyDeLError, UnsupportedModelError
from easydel.lora import LoRA, add_adapters, load_adapters, merge_adapters, save_adapters
from easydel.lora.dropout import dropout_keys, with_keys
from easydel.lora.modules import dropped
from easydel.train import State, causal_loss, init_state, step
from easydel.tree import Tree, bind, flatten, unflatten

CASES = {case.name: case for case in all_cases()}
CASE = small(llama("lora"), mlp_bias=True)
CHOICE = LoRA(r=3, lora_alpha=5, target_modules=["q_proj", "mlp.down_proj"], use_rslora=True)
ADAPTED = ("self_attn.q_proj", "mlp.down_proj")
IDS = random_ids(CASE)


@dataclass
class Saved:
    """A model and random adapters of it, as transformers and PEFT store them."""

    directory: Path
    adapters: Path
    reference: Any
    tensors: dict[str, np.ndarray]

    def load(self, **choices: Any) -> tuple[BaseNNXModule, Tree]:
        return AutoEasyDeLModelForCausalLM.from_pretrained(self.directory, **choices)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("model")
    reference = make_reference(CASE, directory)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    randomise_adapters(model, add_adapters(model, CHOICE))
    save_adapters(model, directory / "adapters")
    tensors = load_file(directory / "adapters" / "adapter_model.safetensors")
    return Saved(directory, directory / "adapters", reference, tensors)


def randomise_adapters(model: BaseNNXModule, params: Tree) -> Tree:
    random = np.random.default_rng(3)
    leaves = {
        path: jnp.asarray(random.normal(0, 0.2, leaf.shape), jnp.float32) if "lora_" in path else leaf
        for path, leaf in flatten(params).items()
    }
    changed = unflatten(leaves)
    bind(model, changed)
    return changed


def merged_reference(saved: Saved) -> np.ndarray:
    """transformers' logits with W + alpha / sqrt(r) * B A for each adapted W."""
    modules = dict(saved.reference.named_modules())
    before = {name: parameter.clone() for name, parameter in saved.reference.named_parameters()}
    with torch.no_grad():
        for name, low in saved.tensors.items():
            if "lora_A" in name:
                high = torch.tensor(saved.tensors[name.replace("lora_A", "lora_B")])
                module = modules[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]
                module.weight += 5 / 3**0.5 * high @ torch.tensor(low)
    logits = reference_logits(saved.reference, IDS)
    saved.reference.load_state_dict(before, strict=False)
    return logits


def test_fresh_adapters_change_nothing_and_are_not_all_zero():
    model, params = random_model(CASE)
    before = np.asarray(model.apply(params, IDS).logits)
    adapted = add_adapters(model, LoRA(r=4))
    np.testing.assert_array_equal(model.apply(adapted, IDS).logits, before)
    low, high = (np.asarray(flatten(adapted)[f"model/layers/1/mlp/up_proj/lora_{leaf}"]) for leaf in "AB")
    assert (low.shape, high.shape) == ((4, 48), (80, 4))
    assert not high.any()
    assert 0.9 * 48**-0.5 < np.abs(low).max() <= 48**-0.5


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
def test_adapted_logits_equal_transformers_with_the_products_added(saved: Saved, scan_layers: bool):
    model, _ = saved.load(scan_layers=scan_layers)
    params = load_adapters(model, saved.adapters)
    expected = merged_reference(saved)
    assert np.abs(expected - reference_logits(saved.reference, IDS)).max() > 0.1
    assert_close(model(IDS).logits, expected)
    assert_close(model.apply(params, IDS).logits, expected)


def test_merged_adapters_are_in_what_transformers_loads(saved: Saved, tmp_path: Path):
    model, _ = saved.load()
    load_adapters(model, saved.adapters)
    with pytest.raises(ArgumentError, match="merge_adapters"):
        model.export(tmp_path / "too-early")
    with pytest.raises(ArgumentError, match="save_adapters"):
        model.save_pretrained(tmp_path / "too-early")
    merged = merge_adapters(model)
    assert flatten(merged).keys() == flatten(saved.load()[1]).keys()
    expected = merged_reference(saved)
    assert_close(model(IDS).logits, expected)
    model.export(tmp_path / "merged")
    original, exported = (load_file(folder / "model.safetensors") for folder in (saved.directory, tmp_path / "merged"))
    changed = {name for name, tensor in exported.items() if not np.array_equal(tensor, original[name])}
    assert changed == {f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ADAPTED}


def test_files_are_those_of_peft(saved: Saved):
    shapes = {"self_attn.q_proj": ((3, 48), (48, 3)), "mlp.down_proj": ((3, 80), (48, 3))}
    assert {name: tensor.shape for name, tensor in saved.tensors.items()} == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{leaf}.weight": shapes[module][leaf == "B"]
        for layer in (0, 1)
        for module in ADAPTED
        for leaf in "AB"
    }
    config = json.loads((saved.adapters / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": ["down_proj", "q_proj"],
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("choices", [{"scan_layers": True}, {"load_in_8bit": True}], ids=["scan", "int8"])
def test_adapters_are_saved_bit_for_bit_as_they_were_loaded(saved: Saved, tmp_path: Path, choices: dict[str, Any]):
    model, _ = saved.load(**choices)
    load_adapters(model, saved.adapters)
    save_adapters(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_names_are_the_checkpoints_where_they_differ_from_ours(tmp_path: Path):
    model, _ = random_model(CASES["gpt2-plain"])
    add_adapters(model, LoRA(target_modules=["mlp.c_fc", "o_proj"]))  # theirs and ours
    save_adapters(model, tmp_path)
    names = {name.removesuffix(".weight") for name in load_file(tmp_path / "adapter_model.safetensors")}
    stems = [f"h.{layer}.{name}" for layer in range(len(model.record.blocks)) for name in ("mlp.c_fc", "attn.c_proj")]
    assert names == {f"base_model.model.transformer.{stem}.lora_{leaf}" for stem in stems for leaf in "AB"}
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert sorted(targets) == sorted(f"transformer.{stem}" for stem in stems)  # c_proj alone is the mlp's, too


def train(steps: int = 3, **choices: Any) -> tuple[list[float], State, Tree]:
    model, base = random_model(CASE, int8=True, **choices)
    params = add_adapters(model, LoRA(r=4, lora_alpha=16))
    optimizer = optax.adam(1e-2, eps=1e-3)
    state, run = init_state(model, params, optimizer), step(model, optimizer)
    losses = []
    for _ in range(steps):
        state, metrics = run(state, {"input_ids": random_ids(CASE, 4, 12)})
        losses.append(float(metrics.loss))
    return losses, state, base


@pytest.fixture(scope="module")
def learned() -> tuple[list[float], State, Tree]:
    return train()


def test_on_an_int8_base_only_adapters_learn(learned: Any):
    losses, state, base = learned
    assert losses[-1] < losses[0] - 0.05
    assert {path.rpartition("/")[2] for path in flatten(state.moments[0].mu)} == {"lora_A", "lora_B"}
    after = flatten(state.params)
    assert sum(leaf.dtype == jnp.int8 for leaf in after.values()) == 16
    for path, leaf in flatten(base).items():
        assert after[path] is leaf, path
    assert all(np.asarray(leaf).any() for path, leaf in after.items() if path.endswith("lora_B"))


def test_adapters_learn_the_same_on_eight_devices_in_scanned_layers(learned: Any):
    losses, state, _ = train(mesh=(1, 2, 2, 2), scan_layers=True)
    np.testing.assert_allclose(losses, learned[0], rtol=5e-6)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.moments))
    assert not flatten(state.params)["model/layers/mlp/up_proj/kernel"].sharding.is_fully_replicated


def test_merging_into_int8_gives_floats_and_the_same_logits():
    model, _ = random_model(CASE, int8=True)
    params = randomise_adapters(model, add_adapters(model, LoRA(target_modules=["up_proj"])))
    expected = np.asarray(model.apply(params, IDS).logits)
    merged = flatten(merge_adapters(model, params))
    assert merged["model/layers/0/mlp/up_proj/kernel"].dtype == jnp.float32
    assert merged["model/layers/0/mlp/gate_proj/kernel"].dtype == jnp.int8
    assert "model/layers/0/mlp/up_proj/kernel_scale" not in merged
    assert_close(model(IDS).logits, expected)


def test_other_adapters_of_the_same_shapes_are_not_computed_with_the_old_scale():
    model, params = random_model(CASE)
    logits = []
    for alpha in (8, 16):
        adapted = randomise_adapters(model, add_adapters(model, LoRA(r=2, lora_alpha=alpha)))
        logits.append(np.asarray(model.apply(adapted, IDS).logits))
        merge_adapters(model, adapted)
        bind(model, params)
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def adapted_modules(lora: LoRA) -> set[str]:
    model, _ = random_model(CASE)
    return {path.removesuffix("/lora_A") for path in flatten(add_adapters(model, lora)) if path.endswith("lora_A")}


def test_targets_are_ends_of_names_or_a_pattern_or_all_but_the_head():
    every = adapted_modules(LoRA())
    assert len(every) == 14
    assert not any("lm_head" in path for path in every)
    assert adapted_modules(LoRA(target_modules=r"model\.layers\.1\..*_proj")) == {
        path for path in every if "layers/1/" in path
    }
    assert adapted_modules(LoRA(target_modules=["0.mlp.up_proj", "lm_head"])) == {
        "model/layers/0/mlp/up_proj",
        "lm_head",
    }


@pytest.mark.parametrize(
    ("case", "scan_layers", "targets", "error", "message"),
    [
        (
            CASE,
            False,
            ["q_proj", "qproj"],
            ArgumentError,
            r"\['qproj'\] name no Linear; down_proj, embed_tokens, gate_proj",
        ),
        (CASE, False, "(", ArgumentError, "is no pattern"),
        (CASE, True, r".*\.0\.mlp\..*", ArgumentError, "in part(.|\n)*without scan_layers"),
        (CASES["mixtral-plain"], False, ["gate_proj"], ArgumentError, r"may name mlp\.experts\.down_proj"),
    ],
)
def test_targets_that_cannot_be_are_refused(
    case: Any, scan_layers: bool, targets: Any, error: type[EasyDeLError], message: str
):
    model, params = random_model(case, scan_layers=scan_layers)
    with pytest.raises(error, match=message):
        add_adapters(model, LoRA(target_modules=targets))
    assert flatten(model.params).keys() == flatten(params).keys()


def test_adapters_of_kernels_that_attention_reads_itself_count():
    """Latent attention multiplies queries with parts of kv_b_proj, where that is cheaper."""
    model, params = random_model(small(next(case for name, case in CASES.items() if name.startswith("deepseek_v2"))))
    plain = np.asarray(model.apply(params, IDS[:1, :1], cache=model.init_cache(1, 64)).logits)
    adapted = randomise_adapters(model, add_adapters(model, LoRA(target_modules=["kv_b_proj"])))
    assert model.record.blocks[0].mixer.absorbs(1, 64)
    logits = np.asarray(model.apply(adapted, IDS[:1, :1], cache=model.init_cache(1, 64)).logits)
    assert np.abs(logits - plain).max() > 0.01
    merged = merge_adapters(model, adapted)
    assert_close(model.apply(merged, IDS[:1, :1], cache=model.init_cache(1, 64)).logits, logits)


def test_a_second_set_is_refused_until_the_first_is_merged():
    model, _ = random_model(CASE)
    with pytest.raises(ArgumentError, match="no adapters"):
        save_adapters(model, "nowhere")
    add_adapters(model, CHOICE)
    with pytest.raises(ArgumentError, match="has adapters already"):
        add_adapters(model, CHOICE)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"use_qalora": True, "peft_type": "VERA"}, UnsupportedModelError, "use_qalora=True(.|\n)*VERA"),
        ({"layer_replication": [[0, 2]]}, UnsupportedModelError, "layer_replication"),
        ({"bias": "some"}, CheckpointError, "bias='some', expected one of none, lora_only, all"),
        ({"rank_pattern": {"(": 3}}, CheckpointError, "expected values by regular expression"),
        ({"init_lora_weights": "pissa"}, UnsupportedModelError, "it changes the base model"),
        ({"r": 4}, CheckpointError, r"lora_A.weight is \[3, 48\], expected \[4, 48\]"),
        ({"r": "three"}, CheckpointError, "expected a rank"),
        ({"use_rslora": "no"}, CheckpointError, "expected True or False"),
        ({"target_modules": 7}, CheckpointError, "adapter_config.json"),
    ],
)
def test_configs_of_peft_that_we_cannot_honour_are_refused(
    saved: Saved, tmp_path: Path, change: dict[str, Any], error: type[EasyDeLError], message: str
):
    config = json.loads((saved.adapters / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    save_file(saved.tensors, tmp_path / "adapter_model.safetensors")
    model, _ = random_model(CASE)
    with pytest.raises(error, match=message):
        load_adapters(model, tmp_path)
    assert not any("lora" in path for path in flatten(model.params))


def test_files_that_do_not_fit_are_refused_with_all_that_is_wrong(saved: Saved, tmp_path: Path):
    config = (saved.adapters / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    model, _ = random_model(CASE)
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        load_adapters(model, tmp_path)
    missing, *_ = saved.tensors
    tensors = {name: tensor for name, tensor in saved.tensors.items() if name != missing}
    save_file(tensors | {"base_model.model.other": np.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"is missing(.|\n)*other has no place") as caught:
        load_adapters(model, tmp_path)
    assert f"{missing} is missing" in str(caught.value)
    save_file(saved.tensors | {missing: saved.tensors[missing] * np.nan}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_A.weight'?: has values that are NaN"):
        load_adapters(model, tmp_path)
    assert not any("lora" in path for path in flatten(model.params))


def test_settings_that_are_not_known_are_told(saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = json.loads((saved.adapters / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_something": 3, "eva_config": None}))
    save_file(saved.tensors, tmp_path / "adapter_model.safetensors")
    load_adapters(random_model(CASE)[0], tmp_path)
    assert "use_something are not known here, and left out" in caplog.text


def test_dropout_acts_in_training_alone():
    """Each layer and each step drops others, and the same step drops the same again."""
    model, _ = random_model(CASE, scan_layers=True)
    lora = LoRA(r=4, lora_alpha=16, target_modules=["up_proj"], lora_dropout=0.5)
    params = randomise_adapters(model, add_adapters(model, lora))
    exact = float(causal_loss(model, params, {"input_ids": jnp.asarray(IDS)}))
    state, run = init_state(model, params, optax.sgd(0.0)), step(model, optax.sgd(0.0))
    losses = []
    for count in (0, 1, 0):
        state, metrics = run(replace(state, count=jnp.asarray(count, jnp.int32)), {"input_ids": IDS})
        losses.append(float(metrics.loss))
    assert losses[0] == losses[2] != losses[1]
    assert exact not in losses
    assert abs(np.mean(losses) - exact) < 0.5
    model, _ = random_model(CASE)
    add_adapters(model, replace(lora, target_modules="all-linear"))
    keys = dropout_keys(with_keys(model), jnp.zeros((), jnp.int32), 0)
    drawn = np.concatenate([np.asarray(key).reshape(-1, 2) for key in keys.values()])
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 14
    x = jnp.ones((40, 50))
    kept = np.asarray(dropped(x, jnp.asarray(drawn[0]), 0.25))
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)}
    assert abs(kept.mean() - 1) < 0.05


@pytest.mark.parametrize("arguments", [{"r": 0}, {"r": 2.5}, {"lora_alpha": "8"}, {"lora_dropout": 1.0}])
def test_choices_without_a_meaning_are_refused(arguments: dict[str, Any]):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        LoRA(**arguments)
