"""`easydel verify` and `easydel export`: equal to transformers, and back to its format."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import invoke, invoke_json, make_model, run
from safetensors.torch import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM, CheckpointError
from easydel.cli import comparison


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture(scope="module")
def halved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in bfloat16."""
    folder = tmp_path_factory.mktemp("halved")
    transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def test_verify_passes_a_model_that_equals_transformers(tiny: Path):
    done = run("verify", tiny)
    assert done.returncode == 0, done.stderr
    assert "same first choice   100.00% of 29 tokens" in done.stdout
    assert "result              pass" in done.stdout


def test_verify_measures_how_far_apart_two_models_are(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    ours = comparison._our_logits

    def off_by_a_thousandth(path: Path, length: int, **options: Any) -> tuple[Any, np.ndarray]:
        inputs, logits = ours(path, length, **options)
        logits = logits.copy()
        logits[0, 5, 7] += 1e-3 * np.abs(logits).max()
        return inputs, logits

    monkeypatch.setattr(comparison, "_our_logits", off_by_a_thousandth)
    result = invoke("verify", tiny, "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["passed"], facts["tokens"]) == (1, False, 29)
    assert facts["max_difference"] == pytest.approx(1e-3 * facts["max_reference"], rel=0.01)
    assert facts["tolerance"] == pytest.approx(2e-4 * facts["max_reference"] + 1e-5)


def test_quantized_weights_that_transformers_cannot_read_are_verified_and_exported_as_floats(tmp_path: Path):
    packed = Path(__file__).parent / "formats" / "modelopt_int4_awq_llama"
    facts = invoke_json("verify", packed)
    assert (facts["passed"], facts["decoded"]) == (True, True)
    assert invoke("export", packed, tmp_path / "out").exit_code == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    with np.load(packed / "reference.npz") as weights:
        name = next(name for name in weights if name.startswith("w:"))
        np.testing.assert_array_equal(written[name[2:]], weights[name])
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("loads", [True, False])
def test_codes_that_transformers_takes_for_weights_are_not_what_is_compared(
    loads: bool, monkeypatch: pytest.MonkeyPatch
):
    """It does so with ModelOpt's and quanto's, and gives no error."""
    model = SimpleNamespace(hf_quantizer=object() if loads else None, forward=lambda input_ids: None)
    monkeypatch.setattr(comparison, "_their_model", lambda path, auto: model)
    packed = Path(__file__).parent / "formats" / "modelopt_int4_awq_llama"
    with pytest.raises(TypeError if loads else CheckpointError, match="callable" if loads else "codes for weights"):
        comparison._their_logits(packed, {}, None, quantized=True)


def test_inputs_are_not_rounded_for_the_comparison(tmp_path: Path):
    groups = {"group_0": {"targets": ["Linear"], "input_activations": {"num_bits": 8}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"config_groups": groups}}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with comparison._with_exact_inputs(tmp_path) as place:
        found = json.loads((place / "config.json").read_text())["quantization_config"]["config_groups"]
        assert found == {"group_0": {"targets": ["Linear"], "input_activations": None}}
        assert (place / "model.safetensors").read_bytes() == b"weights"


def test_verify_without_torch_says_what_to_install(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("easydel.cli.verify.find_spec", lambda name: None)
    result = invoke("verify", tiny)
    assert result.exit_code == 2
    assert (
        result.stderr
        == "easydel: verify needs torch and transformers, not installed here; pip install torch transformers\n"
    )


def test_what_transformers_cannot_load_is_told_as_its_problem(tiny: Path, tmp_path: Path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_cache": "perhaps"}))
    result = invoke("verify", tmp_path)
    assert result.exit_code == 2
    assert "transformers cannot load it: " in result.stderr


def test_export_gives_back_every_bit_beside_buffers_of_integers(halved: Path, tmp_path: Path):
    original = load_file(halved / "model.safetensors")
    (tmp_path / "in").mkdir()
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(4)}
    save_file(original | buffers, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_bytes((halved / "config.json").read_bytes())
    done = run("export", tmp_path / "in", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"wrote {tmp_path / 'out'}" in done.stderr
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert original.keys() == exported.keys()
    assert all(torch.equal(original[name].view(torch.int16), exported[name].view(torch.int16)) for name in original)


def test_export_casts_on_request_and_takes_the_tokenizer_along(tiny: Path, tmp_path: Path):
    assert invoke("export", tiny, tmp_path / "out", "--dtype", "f16").exit_code == 0
    facts = invoke_json("inspect", tmp_path / "out")
    assert (list(facts["dtypes"]), facts["loads"]) == (["float16"], True)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


def test_export_of_codes_is_read_as_codes(tiny: Path, tmp_path: Path):
    assert "add --quantized" in invoke("export", tiny, tmp_path / "out", "--int4").stderr
    assert invoke("export", tiny, tmp_path / "out", "--quantized", "--int8").exit_code == 0
    facts = invoke_json("inspect", tmp_path / "out")
    assert (facts["dtypes"].keys() >= {"int32", "float32"}, facts["loads"]) == (True, True)


def test_export_of_mixed_types_loses_nothing(halved: Path, tmp_path: Path):
    mixed = load_file(halved / "model.safetensors")
    mixed["model.norm.weight"] = mixed["model.norm.weight"].float() + 1e-4
    (tmp_path / "mixed").mkdir()
    save_file(mixed, tmp_path / "mixed" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "mixed" / "config.json").write_bytes((halved / "config.json").read_bytes())
    assert invoke("export", tmp_path / "mixed", tmp_path / "out").exit_code == 0
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor.float()) for name, tensor in mixed.items())


def test_what_save_pretrained_wrote_is_recognised(tiny: Path, tmp_path: Path):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tiny, load_in_8bit=True)
    model.save_pretrained(tmp_path / "saved")
    assert "save_pretrained" in invoke_json("inspect", tmp_path / "saved")["format"]
    assert invoke("generate", "fox", "-m", tmp_path / "saved", "-n", 1, "--mesh", "1,1,1,1").exit_code == 0
    refused = invoke("verify", tmp_path / "saved")
    assert (refused.exit_code, "export it first" in refused.stderr) == (2, True)
    assert invoke("export", tmp_path / "saved", tmp_path / "out").exit_code == 0
    assert invoke_json("verify", tmp_path / "out")["passed"]


def test_export_does_not_replace_what_is_there(tiny: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    result = invoke("export", tiny, tmp_path)
    assert result.exit_code == 2
    assert "exists, and is not an empty directory" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
