"""Chat templates render as in transformers, and can do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from built_tokenizers import CHAT, KINDS, byte_level, save
from transformers import AutoTokenizer

from easydel import ArgumentError, ConfigError
from easydel.tokenizer import Tokenizer, load_tokenizer


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


def test_a_template_file_outranks_the_config(bpe: Path):
    (bpe / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert load_tokenizer(bpe).render_chat(CHAT[1:]) == "caf\u00e9!"


def test_of_several_templates_tools_and_name_choose(tmp_path: Path):
    named = [{"name": name, "template": name} for name in ("default", "tool_use", "rag")]
    tokenizer = load_tokenizer(save(tmp_path, byte_level(), chat_template=named))
    assert tokenizer.render_chat(CHAT) == "default"
    assert tokenizer.render_chat(CHAT, tools=[{}]) == "tool_use"
    assert tokenizer.render_chat(CHAT, template="rag") == "rag"
    assert tokenizer.render_chat(CHAT, template="{{ messages | length }}") == "2"


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


def test_loading_does_not_run_the_template(tmp_path: Path):
    load_tokenizer(save(tmp_path, byte_level(), chat_template="{{ 1 / 0 }} {% for %}"))
