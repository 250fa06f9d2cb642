"""Checkpoints as mlx-lm saves them: the same parameters as from Hugging Face's tensors."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from cases import Case
from commands import invoke_json
from parity import make_reference
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM
from easydel.errors import UnsupportedModelError
from easydel.tree import flatten

Arrays = dict[str, np.ndarray]
RAISED = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight", "q_norm.weight")
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def first_case(family: str) -> Case:
    return importlib.import_module(f"cases.{family}").CASES[0]


def saved_by_mlx(tensors: Arrays, case: Case) -> Arrays:
    """Returns tensors as mlx-lm's `sanitize` of their family leaves them."""
    turned = {name: array.swapaxes(1, 2) for name, array in tensors.items() if "conv1d.weight" in name}
    raised = {
        name: array + 1 for name, array in tensors.items() if turned and name.endswith((*RAISED, "k_norm.weight"))
    }
    return split_latents(split_experts(stacked(tensors | turned | raised)), case)


def stacked(tensors: Arrays) -> Arrays:
    """Stacks what Hugging Face has one expert at a time."""
    found: Arrays = {}
    for name, array in tensors.items():
        if (match := re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)\.weight", name)) is None:
            found[name] = array
        elif match[2] == "0":
            count = sum(
                re.fullmatch(rf"{match[1]}\.experts\.\d+\.{match[3]}\.weight", other) is not None for other in tensors
            )
            experts = [tensors[f"{match[1]}.experts.{number}.{match[3]}.weight"] for number in range(count)]
            found[f"{match[1]}.switch_mlp.{PROJECTIONS.get(match[3], match[3])}.weight"] = np.stack(experts)
    return found


def split_experts(tensors: Arrays) -> Arrays:
    """Splits GPT-OSS's and Granite's fused experts."""
    found: Arrays = {}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            turned = array.swapaxes(1, 2)
            found |= {f"{module}.gate_proj.weight": turned[:, ::2], f"{module}.up_proj.weight": turned[:, 1::2]}
        elif leaf == "gate_up_proj_bias":
            found |= {f"{module}.gate_proj.bias": array[:, ::2], f"{module}.up_proj.bias": array[:, 1::2]}
        elif name.endswith(("experts.down_proj", "experts.down_proj_bias")):
            own = "down_proj.bias" if leaf.endswith("bias") else "down_proj.weight"
            found[f"{module}.{own}"] = array if leaf.endswith("bias") else array.swapaxes(1, 2)
        elif module.endswith("block_sparse_moe.input_linear"):
            gate, up = np.split(array, 2, axis=1)
            stem = module.replace("input_linear", "switch_mlp")
            found |= {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}
        else:
            found[name.replace("block_sparse_moe.output_linear", "block_sparse_moe.switch_mlp.down_proj")] = array
    return found


def split_latents(tensors: Arrays, case: Case) -> Arrays:
    found: Arrays = {}
    for name, array in tensors.items():
        if name.endswith("kv_b_proj.weight"):
            heads = array.reshape(case.config["num_attention_heads"], -1, array.shape[1])
            plain = case.config["qk_nope_head_dim"]
            found[name.replace("kv_b_proj", "embed_q")] = heads[:, :plain].swapaxes(1, 2)
            found[name.replace("kv_b_proj", "unembed_out")] = heads[:, plain:]
        else:
            found[name] = array
    return found


def written(family: str, directory: Path) -> tuple[Path, Path]:
    """Writes a tiny model as both save it."""
    theirs, mlx = directory / "hf", directory / "mlx"
    make_reference(case := first_case(family), theirs)
    tensors = saved_by_mlx(load_file(theirs / "model.safetensors"), case)
    mlx.mkdir()
    shutil.copy(theirs / "config.json", mlx)
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(contiguous, mlx / "model.safetensors", metadata={"format": "mlx"})
    return theirs, mlx


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "granitemoe", "qwen3_next"])
def test_parameters_are_those_of_the_checkpoint_that_mlx_has_converted(family: str, tmp_path: Path):
    paths = written(family, tmp_path)
    loaded = [AutoEasyDeLModelForCausalLM.from_pretrained(path)[1] for path in paths]
    expected, found = map(flatten, loaded)
    assert found.keys() == expected.keys()
    for path, array in expected.items():  # one was added to norms and is taken off again
        np.testing.assert_allclose(found[path], array, rtol=0, atol=2e-7 if path.endswith("scale") else 0, err_msg=path)
    planned = [invoke_json("plan", path) for path in paths]
    assert planned[1]["device_bytes"] == planned[0]["device_bytes"]
    assert sum(planned[1]["file_bytes"].values()) == sum(planned[0]["file_bytes"].values())


def test_weights_that_mlx_has_multiplied_are_refused(tmp_path: Path):
    _, mlx = written("falcon_h1", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"mlx-lm has multiplied the config's multipliers into"):
        AutoEasyDeLModelForCausalLM.from_pretrained(mlx)
