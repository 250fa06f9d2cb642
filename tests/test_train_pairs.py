"""`easydel train` on pairs of input and target: rows, the command, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_tokenizers import LANGUAGES, save, with_languages
from cases.bart import whole
from commands import TOKENIZER, invoke, make_model
from parity import make_reference

from easydel import AutoEasyDeLModelForSeq2SeqLM, load_tokenizer
from easydel.errors import ArgumentError
from easydel.train import IGNORED, Pairs, causal_loss, encoded, measured

BACKEND = with_languages(TOKENIZER)
CASE = whole("bart", "pairs", encoder_layers=1, decoder_layers=1)
PAIRS = [
    {"input": "the", "target": "the"},
    {"input": "the fox jumps over the dog", "target": "dog jumps over the quick fox"},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_reference(replace(CASE, config={**CASE.config, "vocab_size": BACKEND.get_vocab_size()}), folder)
    save(folder, BACKEND, chat_template=None)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return folder


def test_a_row_holds_a_pair_with_its_languages_and_keeps_its_end_where_it_is_cut(
    tiny: Path, caplog: pytest.LogCaptureFixture
):
    english, french = LANGUAGES
    tokenizer = load_tokenizer(tiny, src_lang=french, tgt_lang=english)
    length = len(tokenizer.encode(PAIRS[1]["input"])) - 1  # words have other pieces each time they are learned
    rows = measured(encoded(PAIRS, tokenizer), length)
    assert isinstance(rows, Pairs)
    assert f"1 of 2 pairs have more than {length} tokens, and are cut off" in caplog.text
    for row, pair in enumerate(PAIRS):
        found = rows[row]
        for name, ids, padding in (
            ("input_ids", tokenizer.encode(pair["input"]), 0),
            ("labels", tokenizer.encode_target(pair["target"]), IGNORED),
        ):
            kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
            assert found[name].tolist() == kept + [padding] * (found[name].size - len(kept))
        np.testing.assert_array_equal(found["attention_mask"], found["input_ids"] != 0)
    assert rows.input_ids[0, 0] == tokenizer.language_id(french)
    assert rows.labels[0, 0] == tokenizer.language_id(english)
    assert rows.learned == (rows.labels != IGNORED).sum()


def test_the_command_trains_evaluates_and_writes_an_encoder_decoder(tiny: Path, tmp_path: Path):
    pairs, options = tiny / "pairs.jsonl", ("--mesh", "1,1,1,1", "--tgt-lang", LANGUAGES[1])
    short = ("--steps", 3, "--batch", 2, "--length", 32, "--learning-rate", 0.01)
    result = invoke("train", tiny, pairs, "--out", tmp_path, *short, *options, "--eval-file", pairs)
    assert result.exit_code == 0, result.output
    told = result.stderr
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    model, params = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tiny)
    rows: Any = measured(encoded(PAIRS, load_tokenizer(tiny, tgt_lang=LANGUAGES[1])), 32)
    lengths = f"inputs of up to {rows.input_ids.shape[1]} tokens, targets of up to {rows.labels.shape[1]}"
    assert f"2 pairs, {lengths}, {rows.learned} tokens to learn" in told
    np.testing.assert_allclose(losses[0], causal_loss(model, params, rows[:]), rtol=1e-5)
    assert losses[2] < losses[0] - 0.1
    result = invoke("eval", tmp_path / "model", pairs, "--length", 32, *options, "--json")
    np.testing.assert_allclose(json.loads(result.stdout)["loss"], evaluated[-1], rtol=1e-5)


def test_pairs_and_encoder_decoders_belong_together(tiny: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("the quick fox jumps " * 20)
    make_model(tmp_path / "llama")
    options = ("--out", tmp_path / "out", "--steps", 1, "--length", 16)
    for model, file, said in (
        (tiny, text, "bart is an encoder-decoder: it learns pairs, not texts or chats"),
        (
            tmp_path / "llama",
            tiny / "pairs.jsonl",
            "llama is no encoder-decoder: it learns no pairs of input and target",
        ),
    ):
        result = invoke("train", model, file, *options)
        assert result.exit_code == 2
        assert said in result.stderr.replace("\n", " ")
    with pytest.raises(ArgumentError, match="1 of 2 examples are no pairs"):
        measured(encoded([PAIRS[0], {"input_ids": [3, 4]}], load_tokenizer(tiny)), 16)
