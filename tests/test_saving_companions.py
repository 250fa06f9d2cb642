"""Saving into a directory leaves the user's own files in it unchanged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from bad_inputs.valid import write_safetensors

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule

METHODS = pytest.mark.parametrize("method", ["save_pretrained", "export"])
GENERATION = "generation_config.json"
TOKENIZER = {
    "tokenizer.json": "tokens",
    "tokenizer_config.json": "settings",
    "chat_template.jinja": "chat",
    "vocab.json": "words",
    "additional_chat_templates/rag.jinja": "documents",
}


def model_with(folder: Path, files: dict[str, str]) -> BaseNNXModule:
    folder.mkdir()
    write_safetensors(folder)
    fill(folder, files)
    return AutoEasyDeLModelForCausalLM.from_pretrained(folder)[0]


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    """What is in the files of `folder` beside weights, config and manifest."""
    ours = ("model.safetensors", "easydel.safetensors", "config.json", "easydel.json")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ours]
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


@METHODS
@pytest.mark.parametrize("source", [{}, {GENERATION: "{}"}], ids=["alone", "with settings"])
def test_a_model_without_a_tokenizer_takes_no_file_away(tmp_path: Path, method: str, source: dict[str, str]):
    model = model_with(tmp_path / "source", source)
    mine = TOKENIZER | {"reward.model": "mine", "merges.txt": "mine", "README.md": "mine"}
    fill(tmp_path / "target", mine)
    getattr(model, method)(tmp_path / "target")
    assert texts(tmp_path / "target") == mine | source


@METHODS
@pytest.mark.parametrize(
    "mine",
    [
        TOKENIZER | {"tokenizer_config.json": "edited"},
        {"chat_template.jinja": "edited"},
        {"tokenizer.json": "tokens", "merges.txt": "of another tokenizer"},
    ],
    ids=["edited", "template alone", "one file more"],
)
def test_a_tokenizer_in_the_target_stays_whole_and_a_warning_says_so(
    tmp_path: Path, method: str, mine: dict[str, str], caplog: pytest.LogCaptureFixture
):
    model = model_with(tmp_path / "source", TOKENIZER | {GENERATION: "{}"})
    fill(tmp_path / "target", mine)
    with caplog.at_level(logging.WARNING, "easydel"):
        getattr(model, method)(tmp_path / "target")
    assert texts(tmp_path / "target") == mine | {GENERATION: "{}"}
    assert f"{tmp_path / 'target'} keeps its own tokenizer" in caplog.text
    assert all(name in caplog.text for name in mine)


@METHODS
@pytest.mark.parametrize(
    "there",
    [{}, {"reward.model": "mine"}, {"tokenizer.json": "tokens"}, TOKENIZER],
    ids=["none", "other", "one", "all"],
)
def test_a_tokenizer_is_copied_where_there_is_none_or_a_part_of_it(
    tmp_path: Path, method: str, there: dict[str, str], caplog: pytest.LogCaptureFixture
):
    model = model_with(tmp_path / "source", TOKENIZER | {"README.md": "the source's", "reward.model": "the source's"})
    fill(tmp_path / "target", there)
    getattr(model, method)(tmp_path / "target")
    assert texts(tmp_path / "target") == TOKENIZER | there
    assert not caplog.records


@METHODS
def test_generation_settings_are_those_of_the_model(tmp_path: Path, method: str):
    fill(tmp_path / "target", {GENERATION: '{"eos_token_id": 5}'})
    getattr(model_with(tmp_path / "source", {}), method)(tmp_path / "target")
    assert texts(tmp_path / "target") == {}, "the ends of another model's sequences are not this one's"


def test_a_file_that_is_a_link_out_of_the_source_is_not_copied(tmp_path: Path):
    model = model_with(tmp_path / "source", {"tokenizer.json": "tokens"})
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "source" / "vocab.json").symlink_to(tmp_path / "secret")
    model.export(tmp_path / "target")
    assert texts(tmp_path / "target") == {"tokenizer.json": "tokens"}
