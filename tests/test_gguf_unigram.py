"""Tokenizers of T5's GGUF files, against the SentencePiece model that they were made from."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from easydel.checkpoint import open_checkpoint
from easydel.errors import ConfigError
from easydel.weights.gguf import tokenizer_json

MESSAGES: Any = sentencepiece_model_pb2
TEXTS = [
    "",
    "Hello world, it's a parser.",
    "  two  spaces, at the end  ",
    "def f(x):\n\treturn x + 12345",
    "na\u00efve caf\u00e9 \u4f60\u597d",
    "\uff37ide \u2460 \ufb01ne",  # the model's map of characters makes plain letters of these
]


@pytest.fixture(scope="module")
def model() -> Any:
    """A unigram model with T5's special tokens, of the words of a module of Python's."""
    lines, out = Path(argparse.__file__).read_text(encoding="utf-8").splitlines()[:300], io.BytesIO()
    options: Any = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 300, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **options)
    return MESSAGES.ModelProto.FromString(out.getvalue())


def metadata_of(model: Any, file: Path) -> dict[str, Any]:
    writer, pieces = gguf.GGUFWriter(file, "t5"), model.pieces
    writer.add_tokenizer_model("t5")
    writer.add_token_list([piece.piece for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    writer.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return dict(open_checkpoint([file]).metadata)


def test_tokens_and_texts_equal_those_of_the_model_that_was_converted(tmp_path: Path, model: Any):
    theirs: Any = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    tokenizer = tokenizer_json(metadata_of(model, tmp_path / "m.gguf"))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == [*theirs.encode(text), 1], text
        assert 2 in ids or tokenizer.decode(ids) == theirs.decode(ids), text  # theirs shows what is unknown


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": None},
        {"scores": np.zeros(3, np.float32)},
        {"unknown_token_id": 10_000},
        {"precompiled_charsmap": np.zeros(2, np.uint8)},
        {"precompiled_charsmap": "abc"},
    ],
    ids=str,
)
def test_a_broken_vocabulary_is_an_error_with_the_file(tmp_path: Path, model: Any, changes: dict[str, Any]):
    metadata = metadata_of(model, tmp_path / "m.gguf")
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ConfigError) as caught:
        tokenizer_json({key: value for key, value in metadata.items() if value is not None}, Path("m.gguf"))
    assert caught.value.file == "m.gguf"
