"""`import easydel` is quick, and using it needs neither torch nor transformers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import easydel

HEAVY = {"jax", "jaxlib", "flax", "torch", "transformers", "numpy", "huggingface_hub", "tokenizers"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def import_times(statement: str) -> dict[str, float]:
    """Module -> cumulative seconds, as `python -X importtime` prints them."""
    lines = re.findall(
        r"^import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)$", python("-X", "importtime", "-c", statement).stderr, re.M
    )
    return {module: int(microseconds) / 1e6 for microseconds, module in lines}


def test_importing_easydel_is_quick_and_imports_no_heavy_package():
    times = import_times("import easydel")
    assert times["easydel"] < 1
    assert {module.partition(".")[0] for module in times} & HEAVY == set()


def test_public_names_import_no_torch_and_initialise_no_backend():
    script = (
        "import sys, easydel\n"
        "for name in easydel.__all__: getattr(easydel, name)\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized(), [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert python("-c", script).stdout.split("\n")[0] == "False []"


def test_readers_are_imported_when_a_file_needs_them():
    script = "import sys, easydel; easydel.AutoEasyDeLModelForCausalLM; print(*sorted(sys.modules))"
    loaded = python("-c", script).stdout.split()
    assert "easydel.loading" in loaded
    rare = tuple(f"easydel.{part}" for part in ("weights.formats", "weights.gguf", "weights.mlx", "tokenizer", "train"))
    assert not [name for name in loaded if name.startswith(rare)]


@pytest.mark.parametrize("name", easydel.__all__)
def test_public_name_is_there(name: str):
    assert getattr(easydel, name) is not None
    assert name in dir(easydel)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="AutoEasyDelModel"):
        _ = easydel.AutoEasyDelModel
