"""What users expect of a model besides its numbers: random starts, other meshes and vocabularies, odd files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cases import all_cases
from commands import invoke
from parity import random_ids
from safetensors.numpy import load_file, save_file
from trained import empty, random_model, small

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.cli.app import as_options
from easydel.errors import ArgumentError, CheckpointError, ConfigError, UnsupportedModelError
from easydel.initial import initialise
from easydel.lora import LoRA, add_adapters
from easydel.sharding.placement import Placement
from easydel.tree import flatten

CASES = {case.name: case for case in all_cases()}
LLAMA = small(CASES["llama-plain"])
IDS = random_ids(LLAMA)[:1, :6]
load = AutoEasyDeLModelForCausalLM.from_pretrained


@pytest.fixture(scope="module")
def model() -> BaseNNXModule:
    return random_model(LLAMA)[0]


@pytest.fixture
def saved(model: BaseNNXModule, tmp_path: Path) -> Path:
    model.export(tmp_path / "model")
    return tmp_path / "model"


def change(directory: Path, more: dict[str, np.ndarray], prefix: str = "", inner: str = "") -> None:
    tensors = load_file(directory / "model.safetensors")
    named = {
        f"{prefix}{name}".replace("layers.", f"layers.{inner}" if inner else "layers."): tensors[name]
        for name in tensors
    }
    save_file({**named, **more}, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("prefix", "inner"), [("base_model.model.", ""), ("module._orig_mod.", ""), ("", "_checkpoint_wrapped_module.")]
)
def test_names_of_wrappers_are_taken_off_and_said_once(
    saved: Path, caplog: pytest.LogCaptureFixture, prefix: str, inner: str
):
    expected = load_file(saved / "model.safetensors")
    change(saved, {}, prefix, inner)
    with caplog.at_level(logging.INFO):
        loaded, _ = load(saved)
    np.testing.assert_array_equal(loaded.params["lm_head"]["kernel"], expected["lm_head.weight"])
    assert caplog.text.count((prefix or inner).split(".")[0]) == 1


def test_what_stands_before_all_names_is_named(saved: Path):
    change(saved, {}, "trunk.body.")
    with pytest.raises(CheckpointError, match=r"is there, with 'trunk\.body\.' before its name"):
        load(saved)


def test_extra_tensors_are_left_out_where_they_are_named(saved: Path, caplog: pytest.LogCaptureFixture):
    extra = {"v_head.summary.weight": np.ones((1, 48), np.float32), "v_head.summary.bias": np.ones(1, np.float32)}
    change(saved, extra)
    with pytest.raises(CheckpointError, match=r"ignore=\['v_head.\*'\] leaves what is named so out"):
        load(saved)
    with caplog.at_level(logging.INFO):
        load(saved, ignore=["v_head.*"])
    assert "left out, as ignore says: v_head.summary.bias, v_head.summary.weight" in caplog.text
    with pytest.raises(ArgumentError, match=r"\['score.*'\], which match no tensor(.|\n)*v_head"):
        load(saved, ignore=["v_head.*", "score.*"])
    with pytest.raises(CheckpointError, match=r"1 problem(.|\n)*v_head.summary.bias"):
        load(saved, ignore=["v_head.*weight"])
    with pytest.raises(ArgumentError, match="is no regular expression"):
        load(saved, ignore=["("])
    with pytest.raises(ArgumentError, match="expected a tuple"):
        load(saved, ignore="v_head.*")


def test_links_are_followed_where_that_is_asked_for(saved: Path, tmp_path: Path):
    (tmp_path / "linked").mkdir()
    for file in saved.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match=r"link out of the directory(.|\n)*follow_links=True \(--follow-links\)"):
        load(tmp_path / "linked")
    _, params = load(tmp_path / "linked", follow_links=True)
    np.testing.assert_array_equal(params["lm_head"]["kernel"], load_file(saved / "model.safetensors")["lm_head.weight"])
    assert invoke("inspect", tmp_path / "linked").exit_code == 2
    assert invoke("inspect", tmp_path / "linked", "--follow-links").exit_code == 0


def test_a_dtype_that_is_none_is_noticed(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    for name in ("torch.bfloat16", "float8_e4m3fn", None, "auto"):
        (saved / "config.json").write_text(json.dumps(config | {"dtype": name}))
        load(saved)
    (saved / "config.json").write_text(json.dumps(config | {"torch_dtype": "float33"}))
    with pytest.raises(ConfigError, match="torch_dtype is 'float33', expected the name of a dtype"):
        load(saved)


def test_what_save_pretrained_wrote_needs_no_argument(model: BaseNNXModule, tmp_path: Path):
    model.save_pretrained(tmp_path)
    _, params = load(tmp_path)
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(model.params)[path])


def test_a_model_begins_with_random_values_that_the_mesh_does_not_change():
    config = {"model_type": "llama", **LLAMA.config, "initializer_range": 0.1}
    one, params = AutoEasyDeLModelForCausalLM.from_config(config, seed=3)
    choices: dict[str, Any] = {"auto_shard_params": True, "sharding_axis_dims": (1, 2, 2, 2)}
    split, other = AutoEasyDeLModelForCausalLM.from_config(config, seed=3, scan_layers=True, **choices)
    assert split.mesh is not None
    assert (one.mesh, one.dtype, one.param_dtype) == (None, np.float32, np.float32)
    stacked = other["model"]["layers"]["self_attn"]["q_proj"]["kernel"]
    assert not stacked.sharding.is_fully_replicated
    for layer in "01":
        kernel = params["model"]["layers"][layer]["self_attn"]["q_proj"]["kernel"]
        np.testing.assert_array_equal(np.asarray(stacked)[int(layer)], kernel)
        assert 0.08 < np.asarray(kernel).std() < 0.12
    assert np.unique(params["model"]["norm"]["scale"]).tolist() == [1]
    assert (np.asarray(params["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"]) != kernel).any()
    with pytest.raises(ArgumentError, match="load_in_8bit concern checkpoints"):
        AutoEasyDeLModelForCausalLM.from_config(config, load_in_8bit=True)
    with pytest.raises(ConfigError, match="initializer_range is 'big'"):
        AutoEasyDeLModelForCausalLM.from_config(config | {"initializer_range": "big"})


def test_every_kind_of_parameter_has_a_first_value_or_is_refused():
    """Gemma's norms are stored less 1, and Mamba's rates begin as its authors', as in transformers."""
    found: dict[str, Any] = {}
    placement = Placement.on_device(jax.devices()[0], {})
    for name in ("gemma2-plain", "mamba-plain"):
        own = empty(small(next(case for case in CASES.values() if case.name.startswith(name.split("-")[0] + "-"))))
        found |= flatten(initialise(own, placement, seed=0, std=0.02))
    assert np.unique(found["model/norm/scale"]).tolist() in ([0], [1])
    rates = next(leaf for path, leaf in found.items() if path.endswith("A_log"))
    np.testing.assert_allclose(
        np.exp(np.asarray(rates)).reshape(-1, rates.shape[-1])[0], range(1, rates.shape[-1] + 1), rtol=1e-6
    )
    strange = empty(next(case for case in CASES.values() if case.model_type == "apertus"))
    with pytest.raises(UnsupportedModelError, match=r"no first values are known(.|\n)*alpha_n"):
        initialise(strange, placement, seed=0, std=0.02)


def test_a_model_goes_to_another_mesh_with_the_same_logits():
    model, _ = random_model(LLAMA)
    expected = np.asarray(model(IDS).logits)
    mesh = jax.make_mesh((2, 2, 2), ("fsdp", "tp", "sp"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    assert model.to(mesh) is model
    assert model.mesh == mesh
    kernel = model.params["model"]["layers"]["0"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
    np.testing.assert_allclose(model(IDS).logits, expected, rtol=0, atol=2e-5)
    with pytest.raises(ArgumentError, match=r"mesh is a str, expected a jax\.sharding\.Mesh"):
        model.to("cuda")  # type: ignore[arg-type]


def test_a_vocabulary_grows_by_the_mean_of_its_rows_and_shrinks(tmp_path: Path):
    model, _ = random_model(LLAMA)
    before = np.asarray(model.params["lm_head"]["kernel"])
    rows = len(before)
    model.resize_token_embeddings(rows + 3)
    head = np.asarray(model.params["lm_head"]["kernel"])
    np.testing.assert_array_equal(head[:rows], before)
    np.testing.assert_allclose(head[rows:], np.broadcast_to(before.mean(axis=0), (3, before.shape[1])), atol=1e-6)
    assert model(IDS).logits.shape[-1] == rows + 3
    model.export(tmp_path / "grown")
    _, params = load(tmp_path / "grown")
    assert params["model"]["embed_tokens"]["embedding"].shape[0] == rows + 3
    model.resize_token_embeddings(rows)
    np.testing.assert_array_equal(model.params["lm_head"]["kernel"], before)
    with pytest.raises(ArgumentError, match="rows=0"):
        model.resize_token_embeddings(0)
    int8, _ = random_model(LLAMA, int8=True)
    with pytest.raises(UnsupportedModelError, match="int8 vocabulary"):
        int8.resize_token_embeddings(rows + 1)


def test_a_model_or_its_adapters_are_uploaded(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    class Api:
        def __init__(self, token: Any):
            calls.append(token)

        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def create_branch(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
            calls.append((sorted(file.name for file in Path(folder_path).iterdir()), options))
            return type("Commit", (), {"commit_url": "there"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model, _ = random_model(LLAMA)
    assert model.push_to_hub("me/model", private=True, token="secret") == "there"
    assert calls[:2] == ["secret", ("me/model", {"private": True, "exist_ok": True})]
    assert calls[2][0] == ["config.json", "model.safetensors"]
    add_adapters(model, LoRA(r=2))
    model.push_to_hub("me/adapter", revision="next")
    assert calls[-1][0] == ["adapter_config.json", "adapter_model.safetensors"]
    assert calls[-2] == ("me/adapter", {"branch": "next", "exist_ok": True})


@pytest.mark.parametrize(
    ("dims", "told"), [((1, 7, 1, 1), "7 of 8 devices: the others stay unused"), ((1, 8, 1, 1), None)]
)
def test_idle_devices_and_copies_are_told(saved: Path, caplog: pytest.LogCaptureFixture, dims: Any, told: str | None):
    load(saved, auto_shard_params=True, sharding_axis_dims=dims)
    if told is None:
        assert "unused" not in caplog.text
    else:
        assert told in caplog.text
        assert "mesh fsdp=7: " in caplog.text
        assert "is not divisible by fsdp=7" in caplog.text


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("top_k=0, expected at least 1", "--top-k 0, expected at least 1"),
        ("pass max_new_tokens=3 or less; seed is odd", "pass --max-new-tokens 3 or less; seed is odd"),
        ("seed=-1 is negative", "--seed -1 is negative"),
        ("load without load_in_8bit", "load without --int8"),
        ("with load_in_8bit=True if memory is short", "with --int8 if memory is short"),
        ("/a/top_k/config.json: my_top_k is odd", "/a/top_k/config.json: my_top_k is odd"),
    ],
)
def test_errors_of_commands_name_options_as_commands_do(message: str, told: str):
    options = {"load_in_8bit": "--int8", "top_k": "--top-k", "max_new_tokens": "--max-new-tokens", "seed": "--seed"}
    assert as_options(message, options) == told


def test_errors_of_a_real_command_name_its_options(saved: Path):
    result = invoke("plan", saved, "--device-memory", "16")
    assert (result.exit_code, "16 bytes; write 16GiB, if that is meant" in result.stderr) == (2, True)
    result = invoke("generate", "hi", "-m", saved, "--top-k", "0")
    assert "top_k" not in result.stderr
    text = invoke("generate", "--help").stdout
    assert "--int8" in text
    assert "<bool>  Store" not in text


def test_a_prompt_beyond_the_context_is_told(caplog: pytest.LogCaptureFixture):
    model, _ = random_model(small(LLAMA, max_position_embeddings=4))
    model.generate(IDS, max_new_tokens=1)
    assert "the prompt has 6 tokens, and the model was made for 4" in caplog.text


def test_adapters_alone_are_no_model_where_one_is_needed(model: BaseNNXModule, saved: Path, tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    result = invoke("inspect", tmp_path / "adapter")
    assert (result.exit_code, "holds adapters, and no model; easydel export" in result.stderr) == (2, True)
