"""Adapters on weights that stay at their own 4 or 8 bits: trained, saved, read again, and loaded by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM
from easydel.lora import LoRA, add_adapters, load_adapters, save_adapters
from easydel.stored import forms_of
from easydel.train import init_state, step
from easydel.tree import flatten

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:peft", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
BASES = {
    "nf4": "bnb_nf4_double_llama",
    "awq": "awq_gemm_g128_llama",
    "gptq": "gptq_b4_g32_actorder_asym_llama",
    "fp8": "fp8_block128_odd_llama",
}
IDS = np.random.default_rng(0).integers(3, 60, (1, 9))


def base(name: str, directory: Path) -> Path:
    """A checkpoint of the tool; GPTQ's with its groups in order, since in activation order weights become floats."""
    copytree(Path(__file__).parent / "formats" / BASES[name], directory)
    if name == "gptq":
        file = directory / "model.safetensors"
        tensors = {
            key: np.sort(value) if key.endswith("g_idx") else np.ascontiguousarray(value)
            for key, value in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"]["desc_act"] = False
        (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", BASES)
def test_adapters_of_a_quantized_model_are_trained_saved_and_read_by_peft(name: str, tmp_path: Path):
    directory = base(name, tmp_path / "base")
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, precision="highest")
    codes = {path: np.array(flatten(params)[path]) for path in forms_of(model)}
    assert sum("proj" in path for path in codes) >= 7, "the weights stay at their bits"
    before = np.asarray(model(IDS).logits)
    choice = LoRA(r=3, lora_alpha=9, target_modules=["q_proj", "o_proj", "down_proj"])
    state = init_state(model, add_adapters(model, choice), optax.adam(0.02))
    assert all(path.endswith(("lora_A", "lora_B")) for path in flatten(state.trained))
    run = step(model, optax.adam(0.02))
    losses = []
    for _ in range(3):
        state, metrics = run(state, {"input_ids": IDS})
        losses.append(float(metrics.loss))
    assert losses[2] < losses[1] < losses[0]
    trained = np.asarray(model.apply(state.params, IDS).logits)
    assert np.abs(trained - before).max() > 0.02
    for path, leaf in codes.items():
        np.testing.assert_array_equal(flatten(state.params)[path], leaf, err_msg=path)
    save_adapters(model, tmp_path / "adapter", state.params)

    atol = 1e-5 * float(np.abs(trained).max())
    again, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, precision="highest")
    again.export(tmp_path / "floats")
    load_adapters(again, tmp_path / "adapter")
    np.testing.assert_allclose(again(IDS).logits, trained, rtol=0, atol=atol)
    merged, _ = AutoEasyDeLModelForCausalLM.from_pretrained(
        directory, adapter=tmp_path / "adapter", precision="highest"
    )
    np.testing.assert_allclose(merged(IDS).logits, trained, rtol=0, atol=atol)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(found, trained, rtol=0, atol=atol)
