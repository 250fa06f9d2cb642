"""Values that an argument of `from_pretrained` cannot have are refused by name."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from bad_inputs.valid import CONFIG, Q, tensors, write_config, write_safetensors
from safetensors.numpy import save_file

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, BaseNNXModule, CheckpointError, PartitionAxis
from easydel.options import LoadOptions

KERNEL = "model/layers/0/self_attn/q_proj/kernel"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("valid")
    write_safetensors(path)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> BaseNNXModule:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cpu"}, "device='cpu'.*expected a device.*jax.devices"),
        ({"load_in_8bit": True, "bit_targeted_params": "kernel"}, "bit_targeted_params='kernel'.*list of names"),
        ({"load_in_8bit": True, "bit_targeted_params": [1]}, r"bit_targeted_params=\[1\].*list of names"),
        ({"load_in_8bit": True, "bit_targeted_params": []}, r"bit_targeted_params=\[\].*None for all"),
        ({"load_in_8bit": True, "bit_targeted_params": 5}, "bit_targeted_params=5.*list of names"),
        ({"shard_fns": [1]}, "shard_fns is a list, expected a dict"),
        ({"config_kwargs": "x"}, "config_kwargs is a str, expected a dict"),
        ({"partition_axis": None}, "partition_axis is a NoneType, expected a PartitionAxis"),
        ({"param_dtype": jnp.float64}, "param_dtype=.*float64.*jax_enable_x64"),
        ({"param_dtype": jnp.float8_e8m0fnu}, "param_dtype=.*e8m0.*is not a floating-point dtype.*bfloat16"),
        ({"param_dtype": jnp.float8_e4m3fn}, "param_dtype=.*e4m3fn.*is not a floating-point dtype.*bfloat16"),
        ({"dtype": jnp.float8_e5m2}, "dtype=.*e5m2.*is not a floating-point dtype.*bfloat16"),
        ({"dtype": jnp.float4_e2m1fn}, "dtype=.*float4.*is not a floating-point dtype.*bfloat16"),
        ({"dtype": None}, "^dtype=None is no dtype; use .*bfloat16"),
        ({"param_dtype": None}, "^param_dtype=None is no dtype; use .*bfloat16"),
        ({"dtype": "float64"}, "dtype='float64'.*jax_enable_x64"),
        ({"shard_fns": {KERNEL: lambda array: None}}, f"{KERNEL}.*returned a NoneType"),
    ],
)
def test_values_that_no_argument_can_have_are_refused(directory: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)


@pytest.mark.parametrize("method", ["save_pretrained", "export"])
@pytest.mark.parametrize("place", [5, None, b"..", "a\0b", Path("a\0b"), "a\ud800"], ids=repr)
def test_what_is_no_path_is_not_written_to(model: BaseNNXModule, method: str, place: Any):
    with pytest.raises(ArgumentError, match=r"^directory=.* is no path"):
        getattr(model, method)(place)


def test_exports_have_no_dtype_of_8_bits(model: BaseNNXModule, tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"^dtype=.*e4m3fn.*is not a floating-point dtype"):
        model.export(tmp_path / "exported", dtype=jnp.float8_e4m3fn)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8])
@pytest.mark.parametrize("method", [None, "fp8"])
def test_weights_of_8_bits_without_scales_are_refused(tmp_path: Path, dtype: Any, method: str | None):
    write_safetensors(tmp_path)
    stored = tensors() | {Q: tensors()[Q].astype(dtype)}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_config(tmp_path, CONFIG if method is None else CONFIG | {"quantization_config": {"quant_method": method}})
    with pytest.raises(CheckpointError, match=f"{Q} is .*8.* without a scale beside it that is known here") as caught:
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    assert caught.value.file == str(tmp_path / "model.safetensors")


def test_everything_that_is_wrong_with_the_arguments_is_said_at_once(directory: Path):
    wrong: dict[str, Any] = {
        "stream": "no",
        "device": "cpu",
        "dtype": None,
        "precision": "exact",
        "sharding_axis_dims": (3, 3, 3, 3),
        "partition_axis": PartitionAxis(head_axis="model_axis"),
        "input_shape": (0, 7),
        "shard_fns": {KERNEL: 5},
        "config_kwargs": "x",
        "partition_rules": [],
        "bit_targeted_params": ["kernel"],
        "remat": "save_nothing",
    }
    with pytest.raises(ArgumentError) as caught:
        AutoEasyDeLModelForCausalLM.from_pretrained(directory / "nowhere", **wrong)
    message = str(caught.value)
    assert message.startswith("the arguments have 12 problems:\n")
    assert [name for name in wrong if not re.search(rf"^  - .*({name}|mesh sizes \(3, 3)", message, re.MULTILINE)] == []


def test_a_step_that_depends_on_a_wrong_argument_adds_no_problem_of_its_own(directory: Path):
    with pytest.raises(ArgumentError, match=r"^sharding_axis_dims=8, expected a tuple$"):
        LoadOptions.of(sharding_axis_dims=8, auto_shard_params=True)  # type: ignore[arg-type]


def test_options_have_the_names_and_defaults_of_a_load():
    load = signature(AutoEasyDeLModelForCausalLM.from_pretrained).parameters
    defaults = {name: parameter.default for name, parameter in signature(LoadOptions.of).parameters.items()}
    assert defaults == {name: load[name].default for name in load if name != "pretrained_model_name_or_path"}


FLAGS = (
    *("shard_attention_computation", "auto_shard_params", "load_in_8bit", "verbose_params", "from_torch"),
    *("scan_layers", "stream", "progress", "donatable", "allow_nonfinite", "compilation_cache"),
    *("local_files_only", "force_download"),
)


@pytest.mark.parametrize("value", ["False", "no", 1, 0, []], ids=repr)
def test_flags_that_are_no_bool_are_refused_all_at_once(directory: Path, value: Any):
    flags: dict[str, Any] = dict.fromkeys(FLAGS, value)
    with pytest.raises(ArgumentError) as caught:
        AutoEasyDeLModelForCausalLM.from_pretrained(directory, **flags)
    assert all(f"{name}={value!r}" in str(caught.value) for name in FLAGS)
    assert "expected True or False" in str(caught.value)


@pytest.mark.parametrize("name", ["load_in_8bit", "from_torch", "stream", "scan_layers"])
def test_none_is_no_flag(directory: Path, name: str):
    flag: dict[str, Any] = {name: None}
    with pytest.raises(ArgumentError, match=f"{name}=None, expected True or False"):
        AutoEasyDeLModelForCausalLM.from_pretrained(directory, **flag)


def test_bools_of_numpy_are_flags(directory: Path):
    flags: dict[str, Any] = {name: np.bool_(name == "from_torch") for name in FLAGS}
    flags["remat"] = np.True_
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory, **flags)
    assert model.policy.remat is not None
    assert model.params["lm_head"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("method", ["save_pretrained", "export"])
def test_saving_takes_no_text_for_a_flag(model: BaseNNXModule, tmp_path: Path, method: str):
    with pytest.raises(ArgumentError, match="allow_nonfinite='no', expected True or False"):
        getattr(model, method)(tmp_path / "model", allow_nonfinite="no")
