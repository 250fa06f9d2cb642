"""Codes are exported in compressed-tensors' format, as its own tool writes them, and read back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_files import CONFIG

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.checkpoint import find_checkpoint, open_checkpoint
from easydel.errors import ArgumentError
from easydel.forms import BESIDE, Form
from easydel.stored import forms_of
from easydel.tree import flatten
from easydel.weights.export_codes import FLOAT8, scheme_of

FORMATS = Path(__file__).parent / "formats"
PHI3 = {
    **CONFIG,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_hidden_layers": 1,
    "pad_token_id": 0,
    "num_key_value_heads": 2,
}


def loaded(place: Path | str, **arguments: Any) -> BaseNNXModule:
    return AutoEasyDeLModelForCausalLM.from_pretrained(place, **arguments)[0]


def stored(directory: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_checkpoint(find_checkpoint(directory)).items()}


def settings(directory: Path) -> Mapping[str, Any]:
    return json.loads((directory / "config.json").read_text())["quantization_config"]


def assert_kept(model: BaseNNXModule, other: BaseNNXModule) -> None:
    """Both have the same codes, and the same numbers beside them."""
    forms, ours, theirs = forms_of(model), flatten(model.params), flatten(other.params)
    kernels = [path for path in forms if path.endswith("kernel")]
    assert kernels
    for path in kernels:
        assert forms_of(other)[path] == forms[path]
        for name in (f"{path}{end}" for end in ("", *BESIDE)):
            assert (name in ours) == (name in theirs)
            if name in ours:
                np.testing.assert_array_equal(theirs[name], ours[name])


def test_a_file_of_the_tool_is_exported_as_the_tool_wrote_it(tmp_path: Path):
    place = FORMATS / "ct_w4a16_g32_asym_llama"
    loaded(place, param_dtype="bfloat16").export(tmp_path / "out", quantized=True)
    theirs, ours = stored(place), stored(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)
    told, found = settings(place), settings(tmp_path / "out")
    for key in ("quant_method", "format", "quantization_status", "kv_cache_scheme"):
        assert found[key] == told[key]
    scheme, own = (one["config_groups"]["group_0"] for one in (told, found))
    assert own["targets"] == scheme["targets"] == ["Linear"]
    assert own["weights"] == {key: value for key, value in scheme["weights"].items() if key != "observer"}
    assert found["ignore"] == ["lm_head", "model.embed_tokens"]


@pytest.mark.parametrize("kind", ["awq_gemm_g128_llama", "fp8_block128_odd_llama"])
def test_codes_of_other_formats_are_read_back_bit_for_bit(kind: str, tmp_path: Path):
    model = loaded(FORMATS / kind)
    model.export(tmp_path, quantized=True)
    assert_kept(model, loaded(tmp_path))
    assert settings(tmp_path)["format"] == ("float-quantized" if "fp8" in kind else "pack-quantized")


@pytest.mark.parametrize("arguments", [{"load_in_8bit": True}, {"load_in_4bit": True, "scan_layers": True}], ids=str)
@pytest.mark.parametrize("config", [CONFIG, PHI3], ids=["experts", "fused"])
def test_what_was_quantized_while_loading_is_read_back_bit_for_bit(
    config: Mapping[str, Any], arguments: dict[str, bool], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made, _ = AutoEasyDeLModelForCausalLM.from_config(config)
    made.export(tmp_path / "floats")
    model = loaded(tmp_path / "floats", **arguments)
    model.export(tmp_path / "codes", dtype="bfloat16", quantized=True)
    assert "1 tensors of codes are exported as floats" in caplog.text  # the embedding
    assert_kept(model, loaded(tmp_path / "codes", scan_layers="scan_layers" in arguments))
    groups = settings(tmp_path / "codes")["config_groups"]
    if "load_in_8bit" in arguments:
        assert [group["format"] for group in groups.values()] == ["pack-quantized"], "vLLM's one for weights"
        assert str(stored(tmp_path / "codes")["lm_head.weight_packed"].dtype) == "int32"
    else:
        *packed, head = groups.values()  # a group for each size of blocks
        assert {group["format"] for group in packed} == {"pack-quantized"}
        assert (head["format"], head["targets"]) == ("pack-quantized", ["lm_head"])
    assert str(stored(tmp_path / "codes")["model.embed_tokens.weight"].dtype) == "bfloat16"


def test_a_tied_head_is_no_linear_module_with_codes(tmp_path: Path):
    """Else transformers would look for its codes, in vain, and make some up."""
    made, _ = AutoEasyDeLModelForCausalLM.from_config({**CONFIG, "num_hidden_layers": 1, "tie_word_embeddings": True})
    made.export(tmp_path / "floats")
    loaded(tmp_path / "floats", load_in_4bit=True).export(tmp_path / "codes", quantized=True)
    assert {"lm_head", "model.embed_tokens"} <= {*settings(tmp_path / "codes")["ignore"]}


def test_blocks_of_rows_that_lie_apart_have_no_scheme():
    """compressed-tensors has blocks of neighbouring rows alone, and would give rows the scales of others."""
    neighbours, float32 = Form(FLOAT8, (4, 8)), np.dtype(np.float32)
    scheme = scheme_of(neighbours, 16, float32, None)
    assert scheme is not None
    assert scheme.block_structure == (4, 8)
    assert scheme_of(replace(neighbours, step=2), 16, float32, None) is None


def test_floats_are_not_called_quantized_and_tables_have_no_place_there(tmp_path: Path):
    for place in (FORMATS / "bitnet_bitlinear_llama", FORMATS / "bnb_nf4_double_llama"):
        model = loaded(place, dequantize="bitnet" in place.name)
        with pytest.raises(ArgumentError, match="is stored by codes that compressed-tensors has; load with load_in"):
            model.export(tmp_path, quantized=True)
    assert not list(tmp_path.iterdir())
