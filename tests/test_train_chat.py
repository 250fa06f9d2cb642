"""Only what the assistant says is learned, whatever shape the conversations come in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chats import CHATML, END, FORGETFUL, PLAIN, chat, chat_tokenizer, chats
from transformers import PreTrainedTokenizerFast

from easydel.errors import ArgumentError
from easydel.train import IGNORED, encoded, held_out, in_rows
from easydel.train.reading import records
from easydel.train.shapes import Conversation, Tokens, parsed

TURNS = chat("Hi?", "It's a fox!", "And?", "No dogs.")
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def learned(example: Tokens, tokenizer: Any) -> str:
    """The text of the labels that count."""
    return tokenizer.decode(example.labels[example.labels != IGNORED], skip_special_tokens=False)


def test_all_shapes_of_a_conversation_are_the_same_conversation():
    share_gpt = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in TURNS]
    shapes = [
        {"messages": TURNS, "id": 3},
        {"messages": json.dumps(TURNS)},
        {"messages": [m | {"tool_calls": None} for m in TURNS], "prompt": None},
        {"conversations": share_gpt},
        {"conversations": TURNS},
    ]
    assert [parsed(shape) for shape in shapes] == [Conversation(TURNS)] * len(shapes)
    assert parsed({"prompt": TURNS[:3], "completion": TURNS[3:]}) == Conversation(TURNS, first=3)
    assert parsed({"prompt": "Hi?", "completion": TURNS[1:2]}) == Conversation(TURNS[:2], first=1)
    alpaca = {"instruction": "Hi?", "input": "", "output": "It's a fox!", "text": "### Instruction: Hi?"}
    assert parsed(alpaca) == Conversation(TURNS[:2])
    asked = parsed(alpaca | {"input": "Now", "system": "Be kind."})
    assert isinstance(asked, Conversation)
    assert [m["content"] for m in asked.messages] == ["Be kind.", "Hi?\n\nNow", "It's a fox!"]
    assert parsed({"conversations": share_gpt, "system": "S"}).messages[0] == {"role": "system", "content": "S"}  # type: ignore[union-attr]
    for tools in (TOOLS, json.dumps(TOOLS)):
        assert parsed({"messages": TURNS, "tools": tools}) == Conversation(TURNS, TOOLS)


@pytest.mark.parametrize("template", [PLAIN, CHATML], ids=["by difference", "by generation blocks"])
def test_the_assistants_tokens_and_no_others_are_learned(template: str):
    tokenizer = chat_tokenizer(template)
    (example,) = encoded([{"messages": TURNS}], tokenizer)
    assert example.input_ids.tolist() == tokenizer.apply_chat_template(TURNS)
    assert learned(example, tokenizer) == f"It's a fox!{END}No dogs.{END}"
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=END).apply_chat_template(
        TURNS, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
    )
    np.testing.assert_array_equal(example.labels != IGNORED, np.array(theirs["assistant_masks"]) != 0)
    (last,) = encoded([{"prompt": TURNS[:3], "completion": TURNS[3:]}], tokenizer)
    assert learned(last, tokenizer) == f"No dogs.{END}"
    for no in ({"weight": 0}, {"train": False}):
        (first,) = encoded([{"messages": [*TURNS[:3], TURNS[3] | no]}], tokenizer)
        assert learned(first, tokenizer) == f"It's a fox!{END}"


def test_tools_and_their_answers_are_read_and_calls_of_them_are_learned():
    calls = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN.replace(
        "m.content +", "(m.content or m.tool_calls[0].name) +", 1
    )
    tokenizer = chat_tokenizer(calls)
    asked = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "call"}]}]
    (example,) = encoded(
        [{"messages": [*asked, {"role": "tool", "content": "4"}, TURNS[3]], "tools": TOOLS}], tokenizer
    )
    assert learned(example, tokenizer) == f"call{END}No dogs.{END}"
    assert '"name": "f"' in tokenizer.decode(example.input_ids)


def test_an_answer_that_the_template_rewrites_later_is_an_example_of_its_own():
    tokenizer = chat_tokenizer(FORGETFUL)
    first, last = encoded([{"messages": TURNS}], tokenizer)
    assert first.input_ids.tolist() == tokenizer.apply_chat_template(TURNS[:2])
    assert last.input_ids.tolist() == tokenizer.apply_chat_template(TURNS)
    assert learned(first, tokenizer) == f"<think>It's a fox!{END}"
    assert learned(last, tokenizer) == f"<think>No dogs.{END}"


def test_a_prompt_that_begins_a_thought_which_the_answer_lacks_ends_before_it():
    tokenizer = chat_tokenizer(PLAIN.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif"))
    (example,) = encoded([{"messages": TURNS}], tokenizer)
    assert learned(example, tokenizer) == f"It's a fox!{END}No dogs.{END}"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ messages | length }}" + PLAIN, TURNS, "cannot be told; use a template with {% generation %} blocks"),
        (PLAIN, TURNS[1:], "begins with the assistant's message"),
        (CHATML.replace("m.content + '<|im_end|>'", "''", 1), TURNS, "generation blocks are empty"),
        (
            "{% macro a() %}{% generation %}x{% endgeneration %}{% endmacro %}{{ a() | length }}",
            TURNS,
            "changes the text",
        ),
    ],
)
def test_where_the_assistants_part_cannot_be_told_it_says_so(template: str, messages: Any, message: str):
    with pytest.raises(ArgumentError, match=r"example 1: .*" + message.replace("{", r"\{").replace("%", "%")):
        encoded([{"messages": messages}], chat_tokenizer(template))


def test_a_completion_is_learned_with_its_end_and_from_its_first_letter():
    tokenizer = chat_tokenizer()
    (example,) = encoded([{"prompt": "The fox ", "completion": "jumps"}], tokenizer)
    text = tokenizer.decode(example.input_ids, skip_special_tokens=False)
    assert text == f"<s>The fox jumps{END}"
    assert learned(example, tokenizer).strip() == f"jumps{END}"
    assert example.labels[0] == IGNORED


def test_every_format_holds_the_same_records(tmp_path: Path):
    rows = [{"instruction": "a\u2028b, c", "output": 'd\n"e"'}, {"instruction": "f", "output": "g"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (tmp_path / "lines.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["instruction", "output", "input"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(row | {"input": ""} for row in rows)
    for file in sorted(tmp_path.iterdir()):
        assert [found for _, found in records(file)] == rows, file.name


def test_parquet_files_hold_them_too(tmp_path: Path):
    from pyarrow import parquet

    table = __import__("pyarrow").Table.from_pylist(chats(5))
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [parsed(found) for _, found in records(tmp_path / "a.parquet")] == [parsed(found) for found in chats(5)]
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(ArgumentError, match=r"b\.parquet: cannot be read"):
        list(records(tmp_path / "b.parquet"))


def test_all_examples_that_cannot_be_used_are_listed_by_their_lines(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    lines = [
        {"messages": TURNS},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"question": "a", "answer": "b"},
        {"messages": [{"role": "wizard", "content": "a"}]},
        {"messages": TURNS[:1]},
        {"conversations": "no list"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ArgumentError) as caught:
        encoded(file, chat_tokenizer())
    told = str(caught.value).splitlines()
    assert told[0] == f"{file}: has 5 examples that cannot be used:"
    for line, expected in zip(
        told[1:],
        [
            "line 2: holds preferences",
            'line 3: has answer, question; expected "messages", or "conversations", or "prompt" and "completion", or',
            "line 4: messages[0] has the role 'wizard'; there are user, human,",
            "line 5: has no message of the assistant's to learn",
            "line 6: conversations is 'no list', which is no JSON list",
        ],
        strict=True,
    ):
        assert expected in line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": [], "test": []}, "a mapping of train, test; pass one of them"),
        ("the quick fox", "the quick fox: cannot be read"),
        (7, "a int holds no examples"),
        ([], "there are no examples"),
        ([3.5, 2.5], r"example 1: input_ids is 3\.5"),
        ([[1, 2], [[3, 4]]], r"example 2: input_ids is shape \(1, 2\)"),
        ([{"messages": TURNS}], "need a tokenizer; tokenizer=load_tokenizer"),
        ([{"input_ids": [1, 2], "labels": [1]}], "2 input_ids, 1 labels"),
    ],
)
def test_what_holds_no_examples_is_refused(source: Any, message: str):
    with pytest.raises(ArgumentError, match=message):
        encoded(source)


def test_token_ids_come_as_one_row_or_as_examples():
    for row in ([3, 4, 5], (3, 4, 5), np.array([3, 4, 5])):
        found = encoded(row)
        assert isinstance(found, np.ndarray)
        assert found.tolist() == [3, 4, 5]
    masked = {"input_ids": [3, 4, 5], "labels": [-100, 4, 5], "attention_mask": [1, 1, 0]}
    first, second = encoded(iter([[3, 4], masked]))
    assert (first.input_ids.tolist(), first.labels.tolist()) == ([3, 4], [3, 4])
    assert (second.input_ids.tolist(), second.labels.tolist()) == ([3, 4], [-100, 4])
    tokenizer = chat_tokenizer()
    texts = encoded(["a fox", "a dog"], tokenizer)
    assert isinstance(texts, np.ndarray), "texts are joined"
    mixed = encoded([{"text": "a fox"}, {"messages": TURNS}], tokenizer)
    table = SimpleNamespace(to_pylist=lambda: [{"messages": TURNS}], __iter__=None)
    assert learned(encoded(table, tokenizer)[0], tokenizer) == learned(mixed[1], tokenizer)
    assert learned(mixed[0], tokenizer) == f"<s>a fox{END}"


def test_packed_rows_hold_every_example_once_and_little_else():
    random = np.random.default_rng(0)
    sizes = random.integers(2, 17, 200)
    examples = [Tokens(np.full(size, number), np.full(size, number)) for number, size in enumerate(sizes, 1)]
    found = in_rows(examples, 16)
    assert found.segment_ids is not None
    for number, size in enumerate(sizes, 1):
        places = np.nonzero(found.input_ids == number)
        ((row, segment),) = set(zip(places[0], found.segment_ids[places], strict=True))
        assert (found.segment_ids[row] == segment).sum() == len(places[0]) == size
    assert len(found) <= 1.05 * sizes.sum() / 16
    assert found.learned == (sizes - 1).sum()
    alone = in_rows(examples, 16, packing=False)
    assert (len(alone), alone.learned, alone.segment_ids) == (200, found.learned, None)


def test_what_is_cut_off_or_left_out_is_told(caplog: pytest.LogCaptureFixture):
    labels = np.array([-100, -100, -100, 6, 7])
    examples = [Tokens(np.arange(5), labels), Tokens(np.arange(3), np.arange(3))]
    assert in_rows(examples, 4).learned == 3
    assert "1 of 2 examples are longer than 4 tokens (the longest: 5) and cut off: 1 tokens are lost" in caplog.text
    assert in_rows(examples, 3).examples == 1
    assert "1 of 2 examples have no token to learn within 3 tokens, and are left out" in caplog.text
    with pytest.raises(ArgumentError, match="no example has a token to learn within 3 tokens"):
        in_rows(examples[:1], 3)


def test_what_is_held_out_is_not_trained_on():
    examples = [Tokens(np.array([number]), np.array([number])) for number in range(20)]
    kept, held = held_out(examples, 0.1, seed=1)
    assert (len(kept), len(held)) == (18, 2)
    assert {int(example.input_ids[0]) for example in [*kept, *held]} == set(range(20))
    assert [rest.tolist() for rest in held_out(np.arange(10), 0.25, seed=1)] == [list(range(8)), [8, 9]]
    for share in (0, 1.5):
        with pytest.raises(ArgumentError, match="cannot be held out"):
            held_out(examples, share, seed=1)
    with pytest.raises(ArgumentError, match="nothing is left to train on"):
        held_out(examples[:1], 0.5, seed=1)
