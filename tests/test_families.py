"""Every case against transformers: the same logits, step by step, and the same files again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import all_cases
from loaded import Loaded
from parity import assert_close, kept
from safetensors.numpy import load_file

EACH = pytest.mark.parametrize("loaded", all_cases(), ids=lambda case: case.name, indirect=True)


@EACH
def test_padded_prefill_and_cached_steps_equal_transformers(loaded: Loaded):
    try:
        assert_close(loaded.decoded(loaded.model, loaded.params), loaded.cached_logits, loaded.mask)
    except AssertionError as error:
        pytest.fail(f"{error}; {what_fails(loaded)}")


def what_fails(loaded: Loaded) -> str:
    """Which part of a comparison that failed as a whole, found by compiling each alone."""

    def logits() -> None:
        assert_close(loaded.model(**loaded.inputs).logits, loaded.logits)

    def padding() -> None:
        assert_close(loaded.model(**loaded.padded).logits, loaded.padded_logits, loaded.mask)

    def prefill() -> None:
        ours = loaded.decoded(loaded.model, loaded.params)[:, : loaded.start]
        assert_close(ours, loaded.cached_logits[:, : loaded.start], loaded.mask[:, : loaded.start])

    found = [f"{part.__name__}: {problem}" for part in (logits, padding, prefill) if (problem := problem_of(part))]
    return "; ".join(found) or "only cached steps are wrong: logits, padding and prefill are right"


def problem_of(check: Callable[[], None]) -> str | None:
    try:
        check()
    except AssertionError as error:
        return str(error)
    return None


@EACH
def test_exported_checkpoint_is_bit_for_bit_what_transformers_saved(loaded: Loaded, tmp_path: Path):
    loaded.model.export(tmp_path / "exported")
    original = load_file(loaded.directory / "model.safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == {name for name in original if not name.startswith(loaded.case.not_exported)}
    for name, tensor in exported.items():
        assert tensor.dtype == kept(original[name].dtype)
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
    assert config_in(tmp_path / "exported") == config_in(loaded.directory)


def config_in(directory: Path) -> dict[str, object]:
    return json.loads((directory / "config.json").read_text())
