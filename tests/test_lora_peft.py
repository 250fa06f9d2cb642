"""Adapters in files, as PEFT 0.21 takes and writes them. It is not installed here: its rules are written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cases import all_cases
from trained import random_model

from easydel.lora import LoRA, add_adapters, save_adapters

CASES = {case.name: case for case in all_cases()}


def saved_config(directory: Path, case: str, targets: list[str]) -> dict[str, Any]:
    model, _ = random_model(CASES[case])
    add_adapters(model, LoRA(r=2, target_modules=targets))
    save_adapters(model, directory)
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    ("case", "targets", "task"),
    [("llama-plain", ["q_proj"], "CAUSAL_LM"), ("t5-tied", ["q", "wi"], "SEQ_2_SEQ_LM")],
)
def test_the_task_in_a_file_is_the_models(tmp_path: Path, case: str, targets: list[str], task: str):
    assert saved_config(tmp_path, case, targets)["task_type"] == task
