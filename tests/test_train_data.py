"""From documents to batches: nothing is lost, everything can be repeated, and unreadable files are named."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import optax
import pytest

from easydel.errors import ArgumentError
from easydel.train import adamw, batches, documents, packed

END = 96


def test_documents_are_joined_by_their_ends():
    texts = {"a": [5, 6, 7], "b": [8, END], "c": []}
    assert packed(texts, texts.__getitem__, END).tolist() == [5, 6, 7, END, 8, END, END]
    assert packed(texts, texts.__getitem__, None).tolist() == [5, 6, 7, 8, END]


def test_a_text_is_one_document_and_each_line_of_jsonl_is_one(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one\\n"}\n\n{"text": "tw\u00f6", "id": 3}\n', encoding="utf-8")
    assert list(documents(tmp_path / "a.txt")) == ["one\n\ntwo"]
    assert list(documents(tmp_path / "a.jsonl")) == ["one\n", "tw\u00f6"]


def test_only_newlines_end_lines_of_jsonl_and_a_byte_order_mark_is_not_text(tmp_path: Path):
    texts = ["one\u2028two", "a\u0085b", "c\u2029d"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.txt").write_bytes("one\u2028two".encode("utf-8-sig"))
    assert list(documents(tmp_path / "a.txt")) == ["one\u2028two"]
    for end in ("\n", "\r\n"):
        for encoding in ("utf-8", "utf-8-sig"):
            (tmp_path / "a.jsonl").write_bytes((end.join(lines) + end).encode(encoding))
            assert list(documents(tmp_path / "a.jsonl")) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"a\.txt: cannot be read"),
        ("a.txt", b"\xff\xfe\xff", r"a\.txt: cannot be read.*utf-8"),
        ("a.jsonl", b'{"text": "x"}\n{"texts": 1}\n', r'a\.jsonl: line 2 has no "text"'),
        ("a.jsonl", b'{"text": "x"}\n[1, 2]\n', r"a\.jsonl: line 2 is no JSON object"),
        ("a.jsonl", b"[1\n", "line 1"),
        ("a.jsonl", b'{"text": 3}\n', "line 1"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        list(documents(tmp_path / name))


def test_each_time_around_every_piece_comes_once_in_another_order():
    tokens = np.arange(7 * 5 + 3)
    found = batches(tokens, 5, 7, seed=4)
    rounds = [next(found)["input_ids"] for _ in range(2)]
    for pieces in rounds:
        assert pieces.shape == (7, 5)
        np.testing.assert_array_equal(pieces[np.argsort(pieces[:, 0])].ravel(), tokens[:35])
    assert not np.array_equal(*rounds)
    again = batches(tokens, 5, 7, seed=4)
    np.testing.assert_array_equal(next(again)["input_ids"], rounds[0])
    assert not np.array_equal(next(batches(tokens, 5, 7, seed=5))["input_ids"], rounds[0])


def test_a_batch_may_be_a_single_piece():
    found = batches(np.arange(7 * 5), 5, 1, seed=4)
    rows = [next(found)["input_ids"] for _ in range(14)]
    assert {row.shape for row in rows} == {(1, 5)}
    assert [sorted(row[0, 0] for row in part) for part in (rows[:7], rows[7:])] == [list(range(0, 35, 5))] * 2


def test_an_iterator_goes_on_where_another_was():
    tokens = np.arange(50)
    found = batches(tokens, 5, 3, seed=4)
    for _ in range(5):
        next(found)
    place, expected = found.get_state(), [next(found)["input_ids"] for _ in range(4)]
    other = batches(tokens, 5, 3, seed=4)
    other.set_state(place)
    np.testing.assert_array_equal([next(other)["input_ids"] for _ in range(4)], expected)


def test_the_token_that_ends_documents_separates_them():
    tokens = packed(["a", "b", "c", "d"], {"a": [5, 6], "b": [7], "c": [], "d": [8, 9, 5, 6]}.__getitem__, END)
    assert tokens.tolist() == [5, 6, END, 7, END, END, 8, 9, 5, 6, END]
    found = next(batches(tokens, 5, 2, seed=0, end=END))
    assert found["segment_ids"].dtype == np.int32
    for ids, segments in zip(found["input_ids"].tolist(), found["segment_ids"].tolist(), strict=True):
        assert segments == ([0, 0, 0, 1, 1] if ids[0] == 5 else [0, 1, 1, 1, 1])
    with pytest.raises(ArgumentError, match=r"no document ends with token 3; join them by packed"):
        batches(tokens, 5, 2, seed=0, end=3)


def test_too_little_text_is_refused():
    with pytest.raises(ArgumentError, match="4 tokens, not enough for one piece of 5"):
        batches(np.arange(4), 5, 1, seed=0)


def test_the_rate_rises_and_falls_and_norms_do_not_decay():
    optimizer = adamw(0.5, 10, warmup=2, weight_decay=0.1)
    params = {"a": {"kernel": np.ones(2, np.float32)}, "norm": {"scale": np.ones(2, np.float32)}}
    state, rates, decays = optimizer.init(params), [], []
    for _ in range(11):
        # gradients of one sign give steps of exactly the rate, besides the decay
        updates, state = optimizer.update({"a": {"kernel": np.ones(2)}, "norm": {"scale": np.ones(2)}}, state, params)
        rates.append(-float(updates["norm"]["scale"][0]))
        decays.append(-float(updates["a"]["kernel"][0]) - rates[-1])
    np.testing.assert_allclose(rates[:3], [0, 0.25, 0.5], rtol=1e-5)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[2:]))
    np.testing.assert_allclose(rates[-1], 0.05, rtol=1e-5)
    np.testing.assert_allclose(decays, 0.1 * np.array(rates), atol=1e-6)
    assert isinstance(optimizer, optax.GradientTransformation)
    np.testing.assert_allclose(
        -adamw(0.5, 4).update(params, adamw(0.5, 4).init(params), params)[0]["a"]["kernel"], 0.5, rtol=1e-5
    )
