"""easydel in a virtual environment that has no torch: it imports, loads and generates."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# torch, and what only torch brings along.
LEFT_OUT = ("torch", "functorch", "nvidia", "triton")
PROMPT = [[3, 1, 4, 1, 5]]

USE = """
import importlib.util, json, sys
assert importlib.util.find_spec("torch") is None
import jax.numpy as jnp
from easydel import AutoEasyDeLModelForCausalLM
model, params = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[1])
prompt = jnp.array(json.loads(sys.argv[2]))
logits = model(prompt).logits
sequences = model.generate(prompt, max_new_tokens=4).sequences
print(json.dumps({
    "last_logits": logits[0, -1].tolist(),
    "sequences": sequences.tolist(),
    "transformers": "transformers" in sys.modules,
}))
"""


@pytest.fixture(scope="session")
def python_without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with links to all that is installed here, except torch."""
    folder = tmp_path_factory.mktemp("without_torch")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(LEFT_OUT) and entry.name != "__pycache__":
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def run(python: Path, script: str, *arguments: str) -> str:
    command = [str(python), "-c", script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_environment_is_without_torch_and_imports_easydel(python_without_torch: Path):
    script = "import importlib.util, easydel; print(importlib.util.find_spec('torch'), easydel.EasyDeLError.__name__)"
    assert run(python_without_torch, script).split() == ["None", "EasyDeLError"]


def test_loads_and_generates_without_torch(python_without_torch: Path, tmp_path: Path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    result = json.loads(run(python_without_torch, USE, str(tmp_path), json.dumps(PROMPT)).splitlines()[-1])

    prompt = torch.tensor(PROMPT)
    with torch.no_grad():
        expected = reference(prompt).logits[0, -1]
        sequences = reference.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    torch.testing.assert_close(torch.tensor(result["last_logits"]), expected, atol=1e-5, rtol=2e-4)
    assert result["sequences"] == sequences.tolist()
    assert not result["transformers"]
