"""Tokenizers without a tokenizer.json: read as transformers reads them, without torch."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from built_tokenizers import CHAT, CORPUS, SPECIAL, TEMPLATE, TEXTS, byte_level, save
from transformers import AutoTokenizer

from easydel import ConfigError, UnsupportedModelError
from easydel.tokenizer import load_tokenizer


def sentencepiece_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, vocab_size=320, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))


def write_word_piece(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "do", "n", "'", "t", ",", "\u4f60"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"clean_up_tokenization_spaces": True}))


def write_python_only(folder: Path) -> None:
    vocabulary = ["<unk>", "fox</w>", "fo@@", "f", "o", "x</w>", "fo", "x", "o</w>"]
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nf o\nfo x</w>\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "ctrl"}))


def write_gguf(file: Path) -> None:
    """The tokenizer of `byte_level`, its roles and template, and one tensor."""
    model = json.loads(byte_level().to_str())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([3 if token in SPECIAL else 1 for token in sorted(model["vocab"], key=model["vocab"].get)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_chat_template([{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "documents"}])
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("as_directory", [True, False])
def test_a_gguf_file_holds_the_same_tokenizer(tmp_path: Path, as_directory: bool):
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "model.gguf")
    ours = load_tokenizer(tmp_path / "gguf" if as_directory else tmp_path / "gguf" / "model.gguf")
    theirs = load_tokenizer(save(tmp_path / "json", byte_level()))
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert "".join(ours.stream(ids)) == theirs.decode(ids)
    assert ours.special_tokens == theirs.special_tokens
    assert ours.templates == {**theirs.templates, "rag": "documents"}
    assert ours.apply_chat_template(CHAT) == theirs.apply_chat_template(CHAT)


def test_a_gguf_file_needs_neither_transformers_nor_torch(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf")
    assert not {"torch", "transformers"} & set(imported_by(tmp_path))


WRITERS = [write_sentencepiece, write_word_piece, write_python_only]


@pytest.mark.parametrize("write", WRITERS)
def test_other_formats_are_read_by_transformers(tmp_path: Path, write: Callable[[Path], None]):
    write(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ["the foxes don't, fox", *TEXTS]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert "".join(ours.stream(ids)) == ours.decode(ids)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.pad_token_id == theirs.pad_token_id


@pytest.mark.parametrize("write", WRITERS)
def test_other_formats_need_no_torch(tmp_path: Path, write: Callable[[Path], None]):
    write(tmp_path)
    assert imported_by(tmp_path) == ["transformers"]


def test_a_tokenizer_json_needs_neither_transformers_nor_jax(tmp_path: Path):
    assert imported_by(save(tmp_path, byte_level())) == []


def imported_by(folder: Path) -> list[str]:
    script = (
        "import sys; from easydel import load_tokenizer; tokenizer = load_tokenizer(sys.argv[1])\n"
        "tokenizer.decode(tokenizer.encode('fox'))\n"
        "print(*(name for name in ('torch', 'transformers', 'jax', 'flax') if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_without_transformers_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_word_piece(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r'pip install "\.\[tokenizers\]"'):
        load_tokenizer(tmp_path)


def test_a_class_that_transformers_lacks_is_named(tmp_path: Path):
    write_word_piece(tmp_path)
    for name in ("HomemadeTokenizer", "LlamaModel", "__file__"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        with pytest.raises(UnsupportedModelError, match=f"'{name}', which transformers does not have"):
            load_tokenizer(tmp_path)
