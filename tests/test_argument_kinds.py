"""Values that an argument of `from_pretrained` cannot have are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from bad_inputs.valid import write_safetensors

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, BaseNNXModule

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
        ({"param_dtype": jnp.float8_e8m0fnu}, "param_dtype=.*e8m0.*cannot hold weights.*bfloat16"),
        ({"dtype": jnp.float4_e2m1fn}, "dtype=.*float4.*cannot hold weights.*bfloat16"),
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
