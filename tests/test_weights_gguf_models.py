"""A GGUF file loads into the model that it was converted from: equal logits."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gguf_files import TINY, write_gguf

from easydel import AutoEasyDeLModelForCausalLM

IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]


@pytest.mark.parametrize("name", ["llama-3.2", "qwen3", "gemma3", "phi3", "stablelm", "gpt2"])
def test_logits_equal_the_model_that_was_converted(tmp_path: Path, name: str):
    reference = TINY[name].model().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_((parameter * 256).round() / 1024)  # smaller, and still multiples of 1/1024
        expected = reference(torch.tensor(IDS)).logits.numpy()
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(write_gguf(tmp_path / "m.gguf", TINY[name], reference))
    found = np.asarray(model(jnp.array(IDS)).logits)
    assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max() + 1e-5
