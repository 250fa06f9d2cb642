"""The scripts in examples/ do what they say, on a tiny model."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from chats import PLAIN, chats, save_chat_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, conversations and a text."""
    made = tmp_path_factory.mktemp("examples")
    save_chat_model(made / "model", template=PLAIN)
    (made / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats(12)))
    (made / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return made


def run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> str:
    """What the script prints."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_chat_answers_each_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\nIs the fox lazy?\n"))
    assert run("chat", capsys, monkeypatch, folder / "model").count("\n") >= 2


def test_adapters_of_an_8_bit_model_are_trained_on_chats(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run("finetune_chat", capsys, monkeypatch, folder / "model", folder / "chats.jsonl", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_split_model_is_trained_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = (folder / "model", folder / "text.txt", tmp_path)
    assert "'fsdp': 4, 'tp': 2" in run("train_sharded", capsys, monkeypatch, *given)
    run("train_sharded", capsys, monkeypatch, *given)  # nothing is left to do
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model") is not None
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 20


def test_a_prompt_is_read_along_its_length(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert "tokens read:" in run("long_prompt", capsys, monkeypatch, folder / "model", folder / "text.txt")


def test_precisions_are_compared(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    shown = run("perplexity", capsys, monkeypatch, folder / "model", folder / "text.txt").splitlines()
    found = {line.split()[0]: float(line.split()[4]) for line in shown}
    assert set(found) == {"float32", "bfloat16", "int8"}
    assert max(found.values()) < 1.05 * min(found.values())


def test_an_export_is_what_transformers_loads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run("export", capsys, monkeypatch, folder / "model", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


def test_every_example_is_named_in_the_readme_and_run_here():
    tested, files = Path(__file__).read_text(), [*EXAMPLES.glob("*.py")]
    assert files
    for file in files:
        assert f"examples/{file.name}" in (ROOT / "README.md").read_text()
        assert f'run("{file.stem}"' in tested, file.name
