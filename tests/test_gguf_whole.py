"""A GGUF model from its first part to a directory that transformers talks with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf_files import TINY, letters, write_gguf
from parity import assert_close

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer

TEXT = "the hen he heard"
CHAT = [{"role": "user", "content": "the hen"}]


@pytest.fixture
def first_part(tmp_path: Path) -> Path:
    """The first part of one of two models in parts in one directory."""
    reference = TINY["qwen2"].model()
    for name in ("A", "B"):
        part = write_gguf(tmp_path / f"{name}.gguf", TINY["qwen2"], reference, tokenizer=letters, split=10)
    assert part.name == "B-00001-of-00003.gguf"
    return part


def test_a_model_in_parts_is_saved_with_its_tokenizer_and_loads_in_transformers(first_part: Path, tmp_path: Path):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(first_part, progress=False)
    ours = load_tokenizer(first_part)
    model.export(tmp_path / "exported")
    model.save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    again = load_tokenizer(tmp_path / "saved")
    ids = ours.encode(TEXT)
    assert ids[0] == 1
    assert theirs.encode(TEXT) == again.encode(TEXT) == ids
    assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (again.eos_token_id, again.pad_token_id) == (2, 0)
    chat = theirs.apply_chat_template(CHAT, tokenize=False)
    assert chat == again.apply_chat_template(CHAT, tokenize=False) == "the hen</s>"
    assert again.apply_chat_template(CHAT, tokenize=False, tools=[{}, {}]) == "2"
    settings = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    with torch.no_grad():
        assert_close(model(np.array([ids])).logits, reference(torch.tensor([ids])).logits.numpy())


def test_a_tokenizer_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(write_gguf(tmp_path / "m.gguf", TINY["qwen2"]))
    model.export(tmp_path / "exported")
    assert "written without a tokenizer" in caplog.text
    assert not (tmp_path / "exported" / "tokenizer.json").exists()
