"""The language models of models of images and text, in either layout, give the logits of the whole model."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from cases import Case, cases_in
from commands import invoke, invoke_json
from hub_server import Repo, serving
from loaded import Loaded
from multimodal_cases import CASES, Config, Multimodal
from parity import assert_close, logits_of, make_reference, random_ids, randomise, reference_logits
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLConfig, AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.errors import CheckpointError, ConfigError, UnsupportedModelError
from easydel.families import all_wrappers
from easydel.lora import load_adapters, save_adapters
from easydel.tree import flatten

# Its model of images is from a library that tests do not have.
TIMM = cases_in("gemma3n_text")[0]
EACH = pytest.mark.parametrize("loaded", CASES, ids=lambda case: case.name, indirect=True)
NOT_READ = r"vision_tower|vision_model|embed_(vision|audio)|projector|visual|image_newline|vqmodel|audio_tower"
NOT_READ += "|patch_merge_mlp|vision_embed_tokens|embed_tokens_extend|cross_attn|encoder"
# Of these, transformers itself knows one layout alone.
ONE_LAYOUT = {"gemma4", "gemma4_unified", "llama4", "moss_transcribe_diarize", "phi4_multimodal", "qwen3_asr"}
ONE_LAYOUT |= {"inkling_mm_model", "inkling2", "minimax_m3_vl"}
FLAT = {"phi4_multimodal"}  # configs without a text_config
BOTH = pytest.mark.parametrize(
    "loaded", [case for case in CASES if case.model_type not in ONE_LAYOUT], ids=lambda case: case.name, indirect=True
)
# What follows the plan of a load knows nothing of multimodal models: one is enough.
GEMMA = pytest.mark.parametrize("loaded", [CASES[0]], ids=lambda case: case.name, indirect=True)

MLLAMA = pytest.mark.parametrize(
    "loaded", [case for case in CASES if case.model_type == "mllama"], ids=lambda case: case.name, indirect=True
)


def make(case: Multimodal, directory: Path) -> Any:
    """A random model, saved in `directory`. Weights of what sees are NaN there: who reads them refuses the file."""
    text = case.config if case.model_type in FLAT else {"text_config": case.config}
    values = text | {"vision_config": case.vision} | case.outer
    config = transformers.AutoConfig.for_model(case.model_type, **values)
    torch.manual_seed(sum(case.name.encode()))
    model = auto_of(case).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            randomise(name, tensor)
            if re.search(NOT_READ, name) and "inv_freq" not in name and tensor.is_floating_point():
                tensor.fill_(torch.nan)
    model.save_pretrained(directory)
    return model


def auto_of(case: Case) -> Any:
    """transformers' class for it: it counts some models of sound among sequence-to-sequence models alone."""
    return (
        transformers.AutoModelForSeq2SeqLM if "flamingo" in case.model_type else transformers.AutoModelForMultimodalLM
    )


def load(directory: Path, **arguments: Any) -> tuple[BaseNNXModule, dict[str, Any]]:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)


def rewritten(
    directory: Path,
    to: Path,
    rename: Callable[[str], str] = str,
    change: Callable[[Config], Config] = dict,
    add: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """The checkpoint in `directory` with tensors renamed, its config changed, or with tensors added."""
    tensors = {rename(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    to.mkdir(exist_ok=True)
    save_file({**tensors, **(add or {})}, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(change(config)))
    return to


def newer(name: str) -> str:
    """The name in checkpoints of transformers 4.52 to 4.57 and of the latest models."""
    name = re.sub(r"^(language|text)_model\.lm_head", "lm_head", name)
    name = re.sub(r"^text_model\.model\.", "model.text_model.", name)
    name = re.sub(
        r"^(language_model\.model|model(?!\.(language_model|text_model|visual)))\.", "model.language_model.", name
    )
    return re.sub(rf"^(?={NOT_READ})", "model.", name)


def assert_same(params: dict[str, Any], expected: dict[str, Any]) -> None:
    leaves, wanted = flatten(params), flatten(expected)
    assert leaves.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(leaves[path], leaf, err_msg=path)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gemma")
    make(CASES[0], directory)
    return directory


def test_every_wrapper_has_a_case():
    assert {case.model_type for case in CASES} | {"gemma3n", "phi4mm"} == set(all_wrappers())


@EACH
def test_logits_equal_those_of_the_whole_model(loaded: Loaded):
    assert_close(loaded.model(**loaded.padded).logits, loaded.padded_logits, loaded.mask)


@GEMMA
def test_generated_text_is_that_of_the_whole_model(loaded: Loaded):
    arguments: Config = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = loaded.reference.generate(torch.tensor(loaded.ids), **arguments).numpy()
    np.testing.assert_array_equal(loaded.model.generate(loaded.ids, **arguments).sequences, theirs)


@BOTH
def test_names_of_both_layouts_are_read(loaded: Loaded, tmp_path: Path):
    directory = rewritten(loaded.directory, tmp_path, newer)
    theirs = auto_of(loaded.case).from_pretrained(directory, attn_implementation="eager").eval()
    np.testing.assert_array_equal(reference_logits(theirs, loaded.ids), loaded.logits)
    assert_same(load(directory)[1], loaded.params)


def test_a_model_whose_tower_needs_timm_is_read_as_its_text(tmp_path: Path):
    reference = make_reference(TIMM, tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    outer = {"model_type": "gemma3n", "text_config": config, "vision_config": {"model_type": "gemma3n_vision"}}
    towers = {
        f"model.{part}.weight": np.zeros((2, 2), np.float32) for part in ("vision_tower.stem", "embed_audio.norm")
    }
    directory = rewritten(tmp_path / "text", tmp_path / "whole", newer, lambda _: outer, towers)
    ids = random_ids(TIMM)
    assert_close(load(directory)[0](ids).logits, logits_of(reference, input_ids=ids))


def test_experts_of_inkling_2_are_read_as_mxfp8_where_nothing_says_what_they_are(tmp_path: Path):
    (case,) = (case for case in CASES if case.model_type == "inkling2")
    wide, inner = {"hidden_size": 64, "intermediate_size": 64}, {"text_hidden_size": 64}  # blocks have 32 columns
    make(replace(case, config=case.config | wide, vision=case.vision | inner), tmp_path)
    codes = {
        name: tensor.astype(ml_dtypes.float8_e4m3fn)
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if ".mlp.experts." in name
    }
    halves = {
        f"{name}_scale": np.full((*one.shape[:-1], 2), 0.5).astype(ml_dtypes.float8_e8m0fnu)
        for name, one in codes.items()
    }
    floats = {name: one.astype(np.float32) / 2 for name, one in codes.items()}
    assert len(floats) == 2 * case.config["num_hidden_layers"]

    def untold(config: Config) -> Config:
        return {key: value for key, value in config.items() if key != "transformers_version"}

    found = load(rewritten(tmp_path, tmp_path / "coded", change=untold, add=codes | halves), dequantize=True)[1]
    assert_same(found, load(rewritten(tmp_path, tmp_path / "plain", add=floats))[1])


@GEMMA
def test_scanned_and_split_parameters_are_the_same_model(loaded: Loaded):
    dims = (1, 2, 2, -1)
    model, params = load(loaded.directory, scan_layers=True, auto_shard_params=True, sharding_axis_dims=dims)
    assert_close(model.apply(params, loaded.ids).logits, loaded.logits)


@EACH
def test_export_is_a_checkpoint_of_the_language_model_alone(loaded: Loaded, tmp_path: Path):
    loaded.model.export(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    np.testing.assert_array_equal(reference_logits(again, loaded.ids), loaded.logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(again).__name__]
    assert config["model_type"] == again.config.model_type
    assert not {"text_config", "vision_config"} & config.keys()
    assert_same(load(tmp_path)[1], loaded.params)


@EACH
def test_saved_models_come_back(loaded: Loaded, tmp_path: Path):
    loaded.model.save_pretrained(tmp_path)
    model, params = load(tmp_path, from_torch=False)
    assert_same(params, loaded.params)
    assert model.record == loaded.model.record
    assert model.config.to_dict() == loaded.model.config.to_dict()


def write_adapters(directory: Path, prefix: str, layer: int, **settings: Any) -> Path:
    """Adapters of one layer as PEFT writes them (`layers_to_transform`)."""
    directory.mkdir()
    stated = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "org/whole"}
    (directory / "adapter_config.json").write_text(json.dumps(stated | settings))
    name = f"base_model.model.{prefix}.layers.{layer}.self_attn.q_proj.lora"
    factors = {f"{name}_A.weight": np.ones((2, 48), np.float32), f"{name}_B.weight": np.ones((48, 2), np.float32)}
    save_file(factors, directory / "adapter_model.safetensors")
    return directory


@MLLAMA
def test_adapters_name_layers_by_their_numbers_in_the_whole_model(loaded: Loaded, tmp_path: Path):
    whole = write_adapters(tmp_path / "whole", "model.language_model", 2)  # the second of the layers that read text
    before, after = flatten(loaded.params), flatten(load(loaded.directory, adapter=whole)[1])
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    assert changed == ["model/layers/1/self_attn/q_proj/kernel"]
    model, _ = load(loaded.directory)
    load_adapters(model, write_adapters(tmp_path / "text", "model", 4))
    with pytest.warns(UserWarning, match="counts its layers otherwise"):
        save_adapters(model, tmp_path / "saved")
    again = load_adapters(load(loaded.directory)[0], tmp_path / "saved")
    assert [path for path in flatten(again) if "lora_A" in path] == ["model/layers/2/self_attn/q_proj/lora_A"]
    with pytest.raises(CheckpointError, match=r"layers that are left out(.|\n)*layers\.3"):
        load(loaded.directory, adapter=write_adapters(tmp_path / "images", "model.language_model", 3))
    patterns = {"rank_pattern": {"layers.2.self_attn.q_proj": 2}}
    with pytest.raises(UnsupportedModelError, match=r"patterns for layers(.|\n)*layers\.2"):
        load(loaded.directory, adapter=write_adapters(tmp_path / "patterns", "model.language_model", 2, **patterns))


def test_the_user_is_told_once_that_images_are_left_out(gemma: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        load(gemma)
    assert [record.message for record in caplog.records] == [
        f"{gemma}: only the language model of this gemma3 is loaded (gemma3_text): text, no images or sound"
    ]


def test_streaming_fetches_no_byte_of_what_sees(gemma: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    content, tensors = (gemma / "model.safetensors").read_bytes(), load_file(gemma / "model.safetensors")
    start = 8 + int.from_bytes(content[:8], "little")
    with serving(monkeypatch, tmp_path) as hub:
        hub.repos["org/model"] = Repo({file.name: file.read_bytes() for file in gemma.iterdir()})
        _, params = AutoEasyDeLModelForCausalLM.from_pretrained("org/model", stream=True)
        asked = [request.range for request in hub.requests if request.method == "GET" and request.storage]
    assert_same(params, load(gemma)[1])
    spans = [tuple(map(int, text.removeprefix("bytes=").split("-"))) for text in asked if text]
    fetched = sum(last + 1 - first for first, last in spans if first >= start)
    assert fetched == sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("language_model."))


def test_end_tokens_of_the_whole_model_are_those_of_its_text(gemma: Path):
    model, _ = load(gemma)
    (gemma / "generation_config.json").unlink(missing_ok=True)
    assert model.config["eos_token_id"] == [1, 90]
    assert load(gemma)[0].generation_config["eos_token_id"] == [1, 90]


def test_a_tensor_of_neither_part_is_refused_by_its_own_name(gemma: Path, tmp_path: Path):
    extra = {name: np.zeros(3, np.float32) for name in ("audio_tower.x.weight", "language_model.model.x.weight")}
    rewritten(gemma, tmp_path, add=extra)
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        load(tmp_path)
    assert all(f"{name} [3] has no place in the model" in str(caught.value) for name in extra)


def test_two_tensors_for_one_parameter_are_refused(gemma: Path, tmp_path: Path):
    names = ("language_model.model.norm.weight", "model.language_model.norm.weight")
    rewritten(gemma, tmp_path, add={names[1]: np.zeros(48, np.float32)})
    with pytest.raises(CheckpointError, match=r"is model\.norm\.weight of the language model, and so is") as caught:
        load(tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_a_missing_tensor_is_an_error(gemma: Path, tmp_path: Path):
    name = "language_model.model.norm.weight"
    rewritten(gemma, tmp_path, lambda found: "vision_tower.x" if found == name else found)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config": {"model_type": "clip_text_model"}}, ("gemma3", "'clip_text_model'")),
        ({"model_type": "kosmos-2", "text_config": {"model_type": "kosmos_2_text"}}, ("kosmos-2", "kosmos_2_text")),
    ],
    ids=["language model", "wrapper"],
)
def test_what_is_not_known_is_refused_with_both_types(
    gemma: Path, tmp_path: Path, changes: Config, words: tuple[str, ...]
):
    rewritten(gemma, tmp_path, change=lambda config: config | changes)
    with pytest.raises(UnsupportedModelError) as caught:
        load(tmp_path)
    assert all(word in caught.value.problem for word in words)
    assert caught.value.file == str(tmp_path / "config.json")
    assert invoke_json("inspect", tmp_path)["loads"] is False


@pytest.mark.parametrize("text", [None, 5, [], {"model_type": 5}, {"model_type": ["llama"]}], ids=str)
def test_a_broken_text_config_is_a_config_error(gemma: Path, tmp_path: Path, text: Any):
    rewritten(gemma, tmp_path, change=lambda config: config | {"text_config": text})
    with pytest.raises(ConfigError, match="text_config"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="text_config"):
        AutoEasyDeLConfig.from_pretrained(tmp_path)


def test_settings_among_the_outer_ones_are_those_of_a_text_config(tmp_path: Path):
    text = next(case.config for case in CASES if case.model_type == "dots3_note")
    outer: Config = {"model_type": "dots3_note", "vision_config": {}, "audio_config": {}}
    configs = []
    for keys in (text, {"text_config": text}):
        (tmp_path / "config.json").write_text(json.dumps(outer | keys))
        configs.append(dict(AutoEasyDeLConfig.from_pretrained(tmp_path)))
    assert configs[0] == configs[1]


def test_packed_weights_of_the_language_model_are_refused(gemma: Path, tmp_path: Path):
    packed = {"quantization_config": {"quant_method": "aqlm"}}
    rewritten(gemma, tmp_path, change=lambda config: config | {"text_config": config["text_config"] | packed})
    with pytest.raises(UnsupportedModelError, match="aqlm"):
        load(tmp_path)


@pytest.mark.parametrize("inner", [True, False], ids=["in text_config", "outside"])
def test_quantized_weights_of_the_language_model_are_read(gemma: Path, tmp_path: Path, inner: bool):
    name = next(name for name in load_file(gemma / "model.safetensors") if name.endswith("layers.1.mlp.up_proj.weight"))
    codes = np.full((load_file(gemma / "model.safetensors")[name].shape), 3, ml_dtypes.float8_e4m3fn)
    added = {name: codes, name.replace("weight", "weight_scale"): np.full((), 0.25, np.float32)}
    stated = {"quantization_config": {"quant_method": "fp8"}}

    def change(config: Config) -> Config:
        return config | ({"text_config": config["text_config"] | stated} if inner else stated)

    params = flatten(load(rewritten(gemma, tmp_path, change=change, add=added), dequantize=True)[1])
    np.testing.assert_array_equal(params["model/layers/1/mlp/up_proj/kernel"], np.full(codes.shape, 0.75))


def test_config_is_that_of_the_language_model(gemma: Path):
    config = AutoEasyDeLConfig.from_pretrained(gemma)
    assert (config.model_type, config.hidden_size) == ("gemma3_text", 48)
    assert dict(config) == dict(load(gemma)[0].config)


def test_commands_see_the_language_model(gemma: Path, tmp_path: Path):
    facts = invoke_json("inspect", gemma)
    assert (facts["model_type"], facts["loads"], facts["vocabulary"]) == ("gemma3", True, 97)
    planned = invoke_json("plan", gemma, "--mesh", "1,2,2,1", "--reads")
    assert planned["parameters"] == facts["parameters"] == load(gemma)[0].num_params()
    assert not any("vision" in step["tensor"] for step in planned["reads"])
    assert invoke("export", gemma, tmp_path / "out").exit_code == 0
    assert invoke_json("verify", gemma)["passed"]
