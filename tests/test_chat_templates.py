"""Chat templates render as in transformers, and can do no harm."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from built_tokenizers import CHAT, KINDS, byte_level, save
from transformers import AutoTokenizer

from easydel import ArgumentError, ConfigError
from easydel.tokenizer import Tokenizer, chat, load_tokenizer


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer.json; those that are not BPE clean up spaces."""
    extra = ["<|end|>"]
    return save(
        tmp_path_factory.mktemp(request.param),
        KINDS[request.param](),
        additional_special_tokens=extra,
        clean_up_tokenization_spaces=True,
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    return save(tmp_path / "bpe", byte_level())


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]])
def test_chat_template_renders_as_in_transformers(folder: Path, ours: Tokenizer, prompt: bool, tools: list | None):
    theirs = AutoTokenizer.from_pretrained(folder)
    options = {"add_generation_prompt": prompt, "tools": tools, "year": 2024}
    expected = theirs.apply_chat_template(CHAT, tokenize=False, **options)
    assert ours.render_chat(CHAT, **options) == expected
    assert ours.apply_chat_template(CHAT, **options) == theirs.apply_chat_template(CHAT, **options)["input_ids"]


def test_the_arguments_of_transformers_mean_the_same(bpe: Path):
    ours, theirs = load_tokenizer(bpe), AutoTokenizer.from_pretrained(bpe)
    expected = theirs.apply_chat_template(CHAT)
    assert ours.apply_chat_template(CHAT) == expected["input_ids"]
    assert ours.apply_chat_template(CHAT, return_dict=True) == dict(expected)
    arguments = {"tokenize": False, "chat_template": "{{ messages | length }}", "padding": False, "max_length": None}
    assert ours.apply_chat_template(CHAT, **arguments) == theirs.apply_chat_template(CHAT, **arguments) == "2"
    arrays = ours.apply_chat_template(CHAT, return_dict=True, return_tensors="np")
    np.testing.assert_array_equal(arrays["input_ids"], [expected["input_ids"]])
    np.testing.assert_array_equal(arrays["attention_mask"], [expected["attention_mask"]])
    np.testing.assert_array_equal(ours.apply_chat_template(CHAT, return_tensors="np"), [expected["input_ids"]])


@pytest.mark.parametrize(
    "argument",
    [
        *({"return_tensors": "pt"}, {"padding": True}, {"truncation": True}, {"max_length": 5}),
        *({"continue_final_message": True}, {"return_assistant_tokens_mask": True}, {"sanitize_control_tokens": True}),
        {"tokenizer_kwargs": {"padding": True}},
    ],
    ids=str,
)
def test_an_argument_of_transformers_that_is_not_implemented_is_refused(bpe: Path, argument: dict[str, object]):
    with pytest.raises(ArgumentError, match=f"{next(iter(argument))}=.* is not implemented"):
        load_tokenizer(bpe).apply_chat_template(CHAT, **argument)


def test_several_chats_at_once_are_refused(bpe: Path):
    with pytest.raises(ArgumentError, match="each a dict; several chats: call it for each"):
        load_tokenizer(bpe).apply_chat_template([CHAT])  # type: ignore[arg-type]


def test_a_template_file_outranks_the_config(bpe: Path):
    (bpe / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert load_tokenizer(bpe).render_chat(CHAT[1:]) == "caf\u00e9!"


def test_the_template_of_a_processor_serves_a_tokenizer_without_one(tmp_path: Path):
    folder = save(tmp_path, byte_level(), chat_template=None)
    file = folder / "chat_template.json"
    file.write_text('{"chat_template": "{{ messages[0].content }}?"}')
    assert load_tokenizer(folder).render_chat(CHAT[1:]) == "caf\u00e9?"
    file.write_text('{"chat_template": 5}')
    with pytest.raises(ConfigError, match="broken chat_template") as caught:
        load_tokenizer(folder)
    assert caught.value.file == str(file)


def test_of_several_templates_tools_and_name_choose(tmp_path: Path):
    named = [{"name": name, "template": name} for name in ("default", "tool_use", "rag")]
    tokenizer = load_tokenizer(save(tmp_path, byte_level(), chat_template=named))
    assert tokenizer.render_chat(CHAT) == "default"
    assert tokenizer.render_chat(CHAT, tools=[{}]) == "tool_use"
    assert tokenizer.render_chat(CHAT, template="rag") == "rag"
    assert tokenizer.render_chat(CHAT, template="{{ messages | length }}") == "2"


def test_templates_in_files_with_names_are_those_of_transformers(bpe: Path):
    theirs = AutoTokenizer.from_pretrained(bpe)
    theirs.chat_template = {name: f"{{# {name} #}}{name}" for name in ("default", "tool_use", "rag")}
    theirs.save_pretrained(bpe)
    ours = load_tokenizer(bpe)
    assert ours.templates == theirs.chat_template
    assert ours.render_chat(CHAT, tools=[{}]) == "tool_use"
    assert ours.apply_chat_template(CHAT, chat_template="rag", tokenize=False) == "rag"


def test_a_name_that_no_template_has_is_refused(bpe: Path):
    with pytest.raises(ArgumentError, match="no chat template called 'rag'; there are: default"):
        load_tokenizer(bpe).render_chat(CHAT, template="rag")


def test_the_date_is_there_for_templates_that_ask(bpe: Path):
    assert load_tokenizer(bpe).render_chat(CHAT, template="{{ strftime_now('%Y') }}").isdigit()


def test_without_a_template_the_error_says_what_to_do(tmp_path: Path):
    tokenizer = load_tokenizer(save(tmp_path, byte_level(), chat_template=None))
    with pytest.raises(ConfigError, match="has no chat template; pass one as template=, or encode plain text"):
        tokenizer.apply_chat_template(CHAT)


def test_messages_that_the_template_refuses_are_an_argument_error(bpe: Path):
    tokenizer = load_tokenizer(bpe)
    with pytest.raises(ArgumentError, match="does not take these messages: unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(ArgumentError, match="at least one message"):
        tokenizer.apply_chat_template([])
    with pytest.raises(ArgumentError, match="made of dicts, lists, strings and numbers"):
        tokenizer.apply_chat_template([{"role": "user", "content": object()}])


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ 1 / 0 }}",
        "{{ missing.field }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10000000000) %}{% endfor %}",
        "{% include '/etc/hostname' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ strftime_now.__globals__.keys() }}",
    ],
)
def test_a_broken_or_hostile_template_fails_without_harm(bpe: Path, template: str):
    with pytest.raises(ConfigError, match="the chat template fails"):
        load_tokenizer(bpe).render_chat(CHAT, template=template)


ENDLESS = {
    "nested ranges": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "output without end": "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
    "a text times a number": "{{ 'a' * 10 ** 10 }}",
    "a list times a number": "{{ ([1] * 10 ** 10) | length }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "padding by a format": "{{ '%10000000000s' % 'a' }}",
    "padding by a filter": "{{ 'a' | center(10000000000) }}",
    "replacing": "{% set a = 'a' * 1000000 %}{{ a | replace('a', a) }}",
    "doubling": "{% set n = namespace(a='ab') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "nested lists": "{% set n = namespace(a=1) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{n.a}}",
    "recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "lorem ipsum": "{{ lipsum(n=10 ** 8) }}",
    "a deep expression": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "much text": "{% for a in range(90000) %}{{ '%1000s' % a }}{% endfor %}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_would_run_for_ever_or_fill_the_memory_is_ended(bpe: Path, kind: str):
    tokenizer = load_tokenizer(bpe)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = os.times().children_user
    with pytest.raises(ConfigError, match="the chat template fails") as caught:
        tokenizer.render_chat(CHAT, template=ENDLESS[kind])
    assert caught.value.file == str(bpe)
    assert len(str(caught.value)) < 1000
    assert os.times().children_user - before < 4, "seconds of the processor"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < 200 << 20
    assert tokenizer.render_chat(CHAT[:1], template="{{ messages | length }}") == "1", "the next one runs again"


def test_a_template_runs_without_the_tokens_in_the_environment(bpe: Path, monkeypatch: pytest.MonkeyPatch):
    chat._renderer(os.getpid()).close()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert load_tokenizer(bpe).render_chat(CHAT, template="{{ 1 }}") == "1"
    process = chat._renderer(os.getpid()).process
    assert process is not None
    assert b"hf_secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_loading_does_not_run_the_template(tmp_path: Path):
    tokenizer = load_tokenizer(save(tmp_path, byte_level(), chat_template="{{ 1 / 0 }} {% for %}"))
    assert tokenizer.decode(tokenizer.encode("fox")) == "fox"
