"""Adapters from the Hub, found there with their base, and every command that takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import invoke, invoke_json, make_model
from hub_server import Hub, Repo, serving
from safetensors.numpy import load_file
from test_lora import randomise_adapters

from easydel import AutoEasyDeLModelForCausalLM
from easydel.cli.app import app
from easydel.errors import HubError
from easydel.lora import LoRA, add_adapters, merge_adapters, save_adapters
from easydel.tree import flatten

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:peft", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
ONE = ("--mesh", "1,1,1,1")
PROMPT = "the quick brown fox"


@dataclass
class Made:
    """Directories: a base with a tokenizer, adapters for org/base, and both as one checkpoint."""

    base: Path
    adapter: Path
    merged: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("adapters")
    found = Made(*(folder / name for name in ("base", "adapter", "merged")))
    make_model(found.base)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(found.base)
    randomise_adapters(model, add_adapters(model, LoRA(r=2)))
    save_adapters(model, found.adapter)
    file = found.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "org/base"}))
    model.export(found.merged, merge_adapters(model))
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Made) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path) as running:
        for name in ("base", "adapter"):
            files = {file.name: file.read_bytes() for file in getattr(made, name).iterdir()}
            running.repos[f"org/{name}"] = Repo(files | {"optimizer.pt": b"x", "train.py": b"x"})
        yield running


def same(params: Any, expected: Any) -> None:
    found, wanted = flatten(params), flatten(expected)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-6, err_msg=path)


def test_adapters_on_the_hub_bring_their_base_and_nothing_else(hub: Hub, made: Made):
    _, merged = AutoEasyDeLModelForCausalLM.from_pretrained(made.merged)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained("org/adapter")
    same(params, merged)
    assert {"adapter_model.safetensors", "model.safetensors", "tokenizer.json"} <= hub.fetched()
    assert not hub.fetched() & {"optimizer.pt", "train.py"}
    before = len(hub.requests)
    for name, choices in (("org/adapter", {}), ("org/base", {"adapter": "org/adapter"})):
        _, params = AutoEasyDeLModelForCausalLM.from_pretrained(name, local_files_only=True, **choices)
        same(params, merged)
    assert len(hub.requests) == before
    for choices in ({"stream": True}, {"stream": True, "adapter": made.adapter}):
        name = "org/base" if "adapter" in choices else "org/adapter"
        model, params = AutoEasyDeLModelForCausalLM.from_pretrained(name, **choices)
        same(params, merged)
        assert model.load_report is not None
        assert set(model.load_report.hashes.values()) == {"sha256 as the Hub states"}


def test_the_base_has_the_revision_that_the_adapters_name(hub: Hub, made: Made):
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    for revision in (hub.repos["org/base"].sha, "gone"):
        text = json.dumps(config | {"revision": revision}).encode()
        hub.repos["org/adapter"].files["adapter_config.json"] = text
        hub.repos["org/adapter"].branches = ("tuned",)
        if revision != "gone":
            AutoEasyDeLModelForCausalLM.from_pretrained("org/adapter", revision="tuned")
            assert any(request.path.endswith(f"revision/{revision}") for request in hub.requests)
            continue
        with pytest.raises(HubError, match=r"its adapters are for org/base, which cannot be loaded(.|\n)*gone"):
            AutoEasyDeLModelForCausalLM.from_pretrained("org/adapter", revision="tuned")


def test_every_command_that_takes_adapters_uses_them(hub: Hub, made: Made, tmp_path: Path):
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    takes = {name for name, command in commands.items() if any(p.name == "adapter" for p in command.params)}
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the lazy dog jumps over the quick brown fox"}) + "\n")
    given: dict[str, tuple[Any, ...]] = {
        "generate": ("generate", PROMPT, "-n", 6, *ONE, "--model"),
        "chat": ("chat", "-n", 6, *ONE, "--model"),
        "eval": ("eval", "{model}", tmp_path / "text.jsonl", *ONE, "--json"),
    }
    for name, arguments in given.items():
        said = []
        for model, more in ((made.merged, ()), ("org/base", ("--adapter", "org/adapter")), (made.base, ())):
            placed = [str(argument).replace("{model}", str(model)) for argument in arguments]
            placed += [] if "{model}" in arguments else [str(model)]
            result = invoke(*placed, *more, input=f"{PROMPT}\n" if name == "chat" else None)
            assert result.exit_code == 0, result.output
            said.append(result.stdout)
        assert said[0] != said[2], "the adapters change it"
        if name == "eval":
            found = [json.loads(text)["loss"] for text in said[:2]]
            assert found[1] == pytest.approx(found[0], rel=1e-5)
        else:
            assert said[0] == said[1], name
    assert invoke_json("verify", "org/base", "--adapter", "org/adapter")["passed"]
    assert invoke("export", "org/adapter", tmp_path / "out").exit_code == 0
    expected = load_file(made.merged / "model.safetensors")
    for name, array in load_file(tmp_path / "out/model.safetensors").items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)
    assert takes == {*given, "verify", "export"}
