"""`easydel generate` and `easydel chat` print transformers' text, and nothing else is on stdout."""

from __future__ import annotations

import io
import itertools
import json
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from built_tokenizers import LANGUAGES, save, with_languages
from cases import all_cases
from commands import TOKENIZER, invoke, make_model, run, start
from parity import make_reference

from easydel import load_tokenizer
from easydel.cli.chat import converse
from easydel.cli.streaming import answer

PROMPT = "the quick fox"
NEW = 12
VOCABULARY = {"vocab_size": TOKENIZER.get_vocab_size()}
TABLE = ("embedding", "attention", "mlp", "norms", "[tp, fsdp]", "mesh dp=1 fsdp=4 tp=2 sp=1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    model = make_model(folder)
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def tiny(reference: Any) -> Path:
    return reference.folder


def expected(reference: Any, ids: list[int]) -> str:
    """What transformers' model goes on to say, greedily."""
    prompt = torch.tensor([ids])
    sequence = reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
    return load_tokenizer(reference.folder).decode(sequence[0, len(ids) :].tolist())


def expected_answer(reference: Any, *messages: str) -> str:
    """What it says to a chat of user, assistant, user, ..."""
    roles = ["user", "assistant"] * len(messages)
    said = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
    return expected(reference, load_tokenizer(reference.folder).apply_chat_template(said, add_generation_prompt=True))


def test_generate_prints_the_text_of_transformers_and_nothing_else(reference: Any):
    given = ("--model", reference.folder, "-n", NEW, "--mesh", "1,1,1,1", "--no-chat")
    result = invoke("generate", "-", *given, input=f"{PROMPT}\n")  # the end of a line is no part of it
    said = expected(reference, load_tokenizer(reference.folder).encode(PROMPT))
    assert said
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{said}\n", "")


def test_generate_uses_the_chat_template_unless_told_not_to(reference: Any):
    result = invoke("generate", PROMPT, "--model", reference.folder, "-n", NEW, "--mesh", "1,1,1,1")
    assert result.stdout == f"{expected_answer(reference, PROMPT)}\n"
    assert expected_answer(reference, PROMPT) != expected(reference, load_tokenizer(reference.folder).encode(PROMPT))


def test_generate_on_a_mesh_tells_stderr_what_went_where_and_stdout_the_same_text(reference: Any):
    done = run("generate", "-", "-m", reference.folder, "-n", NEW, "--mesh", "1,4,2,1", input=PROMPT, devices=8)
    assert (done.returncode, done.stdout) == (0, f"{expected_answer(reference, PROMPT)}\n")
    assert [part for part in TABLE if part not in done.stderr] == []


@pytest.mark.parametrize("flags", [[], ["--replicate-kv"]], ids=["copied", "replicated"])
def test_generate_with_more_devices_than_kv_heads_says_the_same(reference: Any, flags: list[str]):
    mesh = ["--mesh", "tp=3", *flags]
    result = invoke("generate", PROMPT, "-m", reference.folder, "-n", NEW, *mesh)
    assert result.stdout == f"{expected_answer(reference, PROMPT)}\n"


def test_generate_answers_with_an_encoder_decoder(tmp_path: Path):
    backend = with_languages(TOKENIZER)
    case = next(case for case in all_cases() if case.model_type == "bart" and case.seq2seq)
    reference = make_reference(replace(case, config={**case.config, "vocab_size": backend.get_vocab_size()}), tmp_path)
    save(tmp_path, backend, chat_template=None)
    tokenizer = load_tokenizer(tmp_path)
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    french = tokenizer.language_id(LANGUAGES[1])
    ways: list[tuple[dict[str, Any], list[Any]]] = [
        ({"num_beams": 1}, []),
        ({"num_beams": 3}, ["--beams", 3]),
        ({"num_beams": 1, "forced_bos_token_id": french}, ["--tgt-lang", LANGUAGES[1]]),
    ]
    for choices, options in ways:
        sequence = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False, **choices
        )
        result = invoke("generate", PROMPT, "-m", tmp_path, "-n", NEW, "--mesh", "1,1,1,1", *options)
        assert result.stdout == f"{tokenizer.decode(sequence[0, 1:].tolist())}\n"


def test_generate_without_a_mesh_takes_all_devices(tiny: Path):
    result = invoke("generate", PROMPT, "--model", tiny, "-n", 1, "--int8")
    assert "mesh dp=1 fsdp=8 tp=1 sp=1" in result.stderr
    assert "scales" in result.stderr


def test_options_reach_generate(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr("easydel.model.BaseNNXModule.generate", lambda model, ids, **arguments: given.update(arguments))
    options = ["--temperature", 2, "--top-k", 5, "--top-p", 0.9, "--min-p", 0.1, "--repetition-penalty", 1.1]
    result = invoke("generate", PROMPT, "-m", tiny, "-n", NEW, "--seed", 7, *options)
    assert result.exit_code == 0, result.output
    assert callable(given.pop("streamer"))
    rules = {"do_sample": True, "temperature": 2, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    assert given == {"max_new_tokens": NEW, "num_beams": 1, "seed": 7, **rules}


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_chat_without_a_template_is_refused_before_weights_load(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_model(tmp_path, template=None)
    monkeypatch.setattr("easydel.auto.AutoEasyDeLModelForCausalLM.from_pretrained", None)
    arguments = ["generate", PROMPT, "--chat"] if command == "generate" else ["chat"]
    result = invoke(*arguments, "--model", tmp_path)
    assert result.exit_code == 2
    assert "has no chat template" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mesh", "1,1,4,1"], "kv_heads=2 cannot be split over tp=4"),
        (["--mesh", "1,16,1,1"], "need 16 devices, there are 8"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--top-p", "2"], "--top-p 2.0"),
    ],
)
def test_what_the_model_cannot_do_is_told_with_exit_code_2(tiny: Path, arguments: list[str], said: str):
    result = invoke("generate", PROMPT, "--model", tiny, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


class Written(io.StringIO):
    """A stdout that tells when something was written; `gone` is one whose reader left."""

    def __init__(self, *, gone: bool = False):
        super().__init__()
        self.touched, self.gone = threading.Event(), gone

    def write(self, text: str) -> int:
        self.touched.set()
        if self.gone:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def model_that_says(ids: list[int], between: Any) -> Any:
    """A model whose tokens are `ids`; `between` is called after the first half of them."""

    def generate(prompt: np.ndarray, *, streamer: Any) -> None:
        for count, token in enumerate(ids):
            streamer(np.array([token]))
            if count == len(ids) // 2:
                between()

    return SimpleNamespace(generate=generate)


def test_text_is_written_while_tokens_are_made(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer, stdout = load_tokenizer(tiny), Written()
    monkeypatch.setattr(sys, "stdout", stdout)
    ids = tokenizer.encode("the quick brown fox jumps over the lazy dogs")
    early: list[bool] = []
    text, count = answer(model_that_says(ids, lambda: early.append(stdout.touched.wait(10))), tokenizer, [5], {})
    assert (early, count) == ([True], len(ids))
    assert text == stdout.getvalue() == tokenizer.decode(ids)


def test_generation_stops_when_nobody_reads_any_more(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = load_tokenizer(tiny)
    monkeypatch.setattr(sys, "stdout", Written(gone=True))
    made: list[int] = []

    def generate(prompt: np.ndarray, *, streamer: Any) -> None:
        for token in itertools.islice(itertools.cycle(tokenizer.encode("fox dogs")), 10**6):
            made.append(token)
            streamer(np.array([token]))
            time.sleep(0.001)

    with pytest.raises(BrokenPipeError):
        answer(SimpleNamespace(generate=generate), tokenizer, [5], {})  # type: ignore[arg-type]
    assert len(made) < 10**4


def test_first_tokens_of_a_prompt_may_see_all_others(tiny: Path):
    calls: list[dict[str, Any]] = []
    model: Any = SimpleNamespace(generate=lambda prompt, streamer, **given: calls.append(given))
    for count in (0, 2):
        answer(model, load_tokenizer(tiny), [5, 6, 7], {"global_tokens": count})
    assert [{name: mask.tolist() for name, mask in given.items()} for given in calls] == [
        {},
        {"global_attention_mask": [[True, True, False]]},
    ]


def test_chat_remembers_what_was_said_until_it_is_cleared(reference: Any):
    first = expected_answer(reference, "the fox")
    second = expected_answer(reference, "the fox", first.strip(), "a dog")
    lines = "the fox\na dog\n\n/clear\nthe fox\n/quit\nnever read\n"
    done = run("chat", "-m", reference.folder, "-n", NEW, input=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [first, second, first, ""]
    assert done.stderr == "forgotten\n"
    assert second != expected_answer(reference, "a dog")


def test_chat_begins_with_the_system_message(reference: Any):
    ids = load_tokenizer(reference.folder).apply_chat_template(
        [{"role": "system", "content": "be lazy"}, {"role": "user", "content": "the fox"}],
        add_generation_prompt=True,
    )
    result = invoke(
        "chat", "-m", reference.folder, "-n", NEW, "--mesh", "1,1,1,1", "--system", "be lazy", input="the fox\n"
    )
    assert result.stdout == f"{expected(reference, ids)}\n"


def test_a_file_of_prompts_is_answered_in_lines_of_json(reference: Any, tmp_path: Path):
    lines = [{"prompt": "the fox"}, {"messages": [{"role": "user", "content": "the fox"}]}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = invoke("generate", "--prompts", tmp_path / "asked.jsonl", "-m", reference.folder, "-n", NEW, "--json")
    assert result.exit_code == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["text"] for one in answers] == [expected_answer(reference, "the fox")] * 2
    assert answers[0]["tokens"] == answers[1]["tokens"] <= NEW
    assert answers[1]["tokens_per_second"] > 0
    stop = re.findall(r"\w", answers[0]["text"])[0]  # no space or "##", which stand or fall with the token before
    cut = invoke("generate", "the fox", "-m", reference.folder, "-n", NEW, "--json", "--stop", stop)
    text = json.loads(cut.stdout)["text"]
    assert answers[0]["text"].startswith(text)
    assert stop in text
    assert text != answers[0]["text"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no prompt"), ("{}", 'line 1 has neither "prompt" nor'), ("x", "line 1 is no JSON")],
)
def test_a_file_without_prompts_is_named(tiny: Path, tmp_path: Path, content: str, said: str):
    (tmp_path / "asked.jsonl").write_text(content)
    result = invoke("generate", "--prompts", tmp_path / "asked.jsonl", "-m", tiny)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_ctrl_c_stops_an_answer_and_pasted_lines_are_one_message(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    typed, pasted = iter(["/help", "one", "two", "three", "/quit"]), iter([False, True, False, False, False])
    monkeypatch.setattr("easydel.cli.chat.sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    monkeypatch.setattr("easydel.cli.chat._pasted", lambda: next(pasted))
    asked: list[str] = []

    def generate(prompt: np.ndarray, **_: Any) -> None:
        asked.append(tokenizer.decode(prompt[0]))
        if len(asked) == 1:
            raise KeyboardInterrupt

    tokenizer = load_tokenizer(tiny)
    model: Any = SimpleNamespace(generate=generate, record=SimpleNamespace(has_encoder=True))
    converse(model, tokenizer, [], {})
    told = capsys.readouterr().err
    assert "/clear forgets what was said, /quit ends.\nCtrl-C" in told
    assert "\n\n(stopped; the question" in told, "on a line of its own"
    assert len(asked) == 2, "the conversation goes on"
    assert "one two" in asked[0]
    assert "three" in asked[1]
    assert "one" not in asked[1]


def test_an_interrupted_chat_exits_quietly_with_130(tiny: Path):
    process = start("chat", "-m", tiny, "-n", 2)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("the fox\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", "")
