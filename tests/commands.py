"""Runs the command for tests, in this process and in one of its own, and makes the tiny model they use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from built_tokenizers import BACKENDS, save
from cases import Case
from parity import make_reference
from typer.testing import CliRunner

from easydel.cli.app import app

TOKENIZER = BACKENDS["word_piece"]
CASE = Case(
    "cli",
    "llama",
    {
        "vocab_size": TOKENIZER.get_vocab_size(),
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "bos_token_id": None,
    },
)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}bot{% endif %}"
)


def make_model(folder: Path, *, template: str | None = TEMPLATE) -> Any:
    """A tiny Llama with a tokenizer, saved in `folder`; transformers' model of it."""
    reference = make_reference(CASE, folder)
    save(folder, TOKENIZER, chat_template=template)
    return reference


def invoke(*arguments: object, input: str | None = None) -> Any:
    """The command in this process; has .exit_code, .stdout and .stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)


def invoke_json(*arguments: object) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


NOTHING: Mapping[str, str] = MappingProxyType({})
# A shell starts its background jobs with SIGINT ignored, and what they start inherits that. This gives a process
# Ctrl-C back. (Popen's preexec_fn would do it too, but makes Popen fork, which JAX's threads forbid.)
INTERRUPTIBLE = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def start(
    *arguments: object, devices: int = 1, places: Mapping[str, str] = NOTHING, **options: Any
) -> subprocess.Popen[str]:
    """The installed command as a process of its own, on CPU devices; `places` are further environment variables."""
    script = Path(sysconfig.get_path("scripts")) / "easydel"
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, str(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **places},
        **options,
    )


def run(*arguments: object, input: str = "", devices: int = 1) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, devices=devices)
    stdout, stderr = process.communicate(input)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
