"""From a name or path to local files, against a Hub on the loopback interface."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repo, serving
from huggingface_hub import constants

from easydel.errors import ArgumentError, CheckpointError, HubError
from easydel.hub import fetch

SIDE = {  # all different: the Hub's cache keeps equal contents once
    name: b'{"from": "%s"}' % name.encode()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
}
NOISE = {"README.md": b"#", "modeling_custom.py": b"import os", "tf_model.h5": b"h", "onnx/model.onnx": b"o"}
ONE = {**SIDE, **NOISE, "model.safetensors": b"s" * 1000, "pytorch_model.bin": b"p" * 1000}


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{i}": shard for i, shard in enumerate(shards)}}).encode()


def sharded(stem: str, suffix: str) -> dict[str, bytes]:
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    return {f"{stem}.{suffix}.index.json": index(*names), **{name: name.encode() * 9 for name in names}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch, tmp_path) as hub:
        hub.repos["org/model"] = Repo(dict(ONE))
        yield hub


def held(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(name: str | Path = "org/model", **options: object) -> str:
    with pytest.raises(HubError) as caught:
        fetch(name, **options)  # type: ignore[arg-type]
    return str(caught.value)


# Local


def test_a_directory_and_a_lone_weight_file_are_returned_as_they_are(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "model.gguf"
    file.touch()
    assert fetch(tmp_path) == tmp_path
    assert fetch(str(tmp_path), subfolder="inner") == tmp_path / "inner"
    assert fetch(file) == file


def test_a_local_directory_needs_no_huggingface_hub(tmp_path: Path):
    script = (
        f"import sys; from easydel.hub import fetch; fetch({str(tmp_path)!r}); print('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"


def test_a_file_of_another_kind_names_the_kinds_that_do(tmp_path: Path):
    (tmp_path / "config.json").touch()
    assert "pass its directory, or a file that ends with one of .safetensors" in refusal(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["./llama-3b", "models/llama-3b/v2", "llama.safetensors", "a b/c", "models/llama-3b/"])
def test_what_can_only_be_a_path_is_refused_without_asking_the_hub(hub: Hub, tmp_path: Path, name: str):
    assert "no such file or directory" in refusal(name)
    assert hub.requests == []


def test_a_mistyped_path_gets_its_likeliest_neighbours(hub: Hub, tmp_path: Path):
    (tmp_path / "models" / "llama-3b").mkdir(parents=True)
    assert refusal(tmp_path / "models" / "lama-3b").endswith(f"did you mean {tmp_path}/models/llama-3b?")
    assert refusal("./models/lama-3b").endswith("did you mean models/llama-3b?")
    assert refusal("models/lama-3b").endswith("did you mean models/llama-3b?")  # could be a Hub id, and was asked for
    assert refusal("models/x").endswith("models holds llama-3b")
    assert refusal("models", subfolder="lama-3b").endswith("did you mean models/llama-3b?")


# What is downloaded


@pytest.mark.parametrize(
    "weights",
    [
        {"model.safetensors": b"s" * 100},
        sharded("model", "safetensors"),
        {"pytorch_model.bin": b"p" * 100},
        sharded("pytorch_model", "bin"),
        {"model.Q4_0.gguf": b"g" * 100},
        {"m-00001-of-00002.gguf": b"g", "m-00002-of-00002.gguf": b"h"},
    ],
    ids=["safetensors", "sharded-safetensors", "bin", "sharded-bin", "gguf", "split-gguf"],
)
def test_only_what_loading_needs_is_downloaded(hub: Hub, weights: dict[str, bytes]):
    hub.repos["org/model"] = Repo({**SIDE, **NOISE, **weights})
    assert held(fetch("org/model")) == {**SIDE, **weights}
    assert hub.fetched() == {*SIDE, *weights}


def test_no_bin_is_downloaded_beside_safetensors_and_never_code(hub: Hub):
    hub.repos["org/model"].files |= sharded("pytorch_model", "bin")
    fetch("org/model")
    assert "model.safetensors" in hub.fetched()
    assert not any(name.endswith((".bin", ".py", ".bin.index.json")) for name in hub.fetched())


def test_shards_that_the_index_does_not_name_stay_where_they_are(hub: Hub):
    extra = {"model-00003-of-00003.safetensors": b"old"}
    hub.repos["org/model"] = Repo({**SIDE, **sharded("model", "safetensors"), **extra})
    fetch("org/model")
    assert not extra.keys() & hub.fetched()


def test_a_repository_of_only_one_gguf_works(hub: Hub):
    hub.repos["org/model"] = Repo({"m.gguf": b"gguf", "README.md": b"#"})
    for weights in (True, False):
        assert held(fetch("org/model", weights=weights)) == {"m.gguf": b"gguf"}


def test_without_weights_only_the_side_files_come(hub: Hub):
    assert held(fetch("org/model", weights=False)) == SIDE


@pytest.mark.parametrize("folder", ["", "sizes/small/"])
def test_named_chat_templates_come_along(hub: Hub, folder: str):
    template = {"additional_chat_templates/rag.jinja": b"rag"}
    other = {"additional_chat_templates/readme.md": b"#", "additional_chat_templates/more/x.jinja": b"x"}
    files = {name.removeprefix(folder): content for name, content in (SIDE | template).items()}
    hub.repos["org/model"].files |= {folder + name: content for name, content in (files | other).items()}
    assert held(fetch("org/model", subfolder=folder, weights=False)) == files


def test_a_subfolder_is_a_checkpoint_of_its_own(hub: Hub):
    small = {"config.json": b'{"small": 1}', **sharded("model", "safetensors")}
    hub.repos["org/model"].files |= {f"sizes/small/{name}": content for name, content in small.items()}
    folder = fetch("org/model", subfolder="sizes/small")
    assert held(folder) == small
    assert hub.fetched() == {f"sizes/small/{name}" for name in small}
    assert "has no folder 'sizes/big'" in refusal(subfolder="sizes/big")


def test_a_revision_gets_its_own_files(hub: Hub):
    old = hub.repos["org/model"].sha
    first = fetch("org/model", revision=old)
    hub.repos["org/model"].files["config.json"] = b'{"new": 1}'
    assert (fetch("org/model") / "config.json").read_bytes() == b'{"new": 1}'
    assert fetch("org/model", revision=old, local_files_only=True) == first


def test_file_names_that_look_like_patterns_match_only_themselves(hub: Hub):
    hub.repos["org/model"] = Repo({"m[a].gguf": b"right", "ma.txt": b"wrong"})
    assert held(fetch("org/model")) == {"m[a].gguf": b"right"}


def test_what_is_cached_is_not_downloaded_again_unless_forced(hub: Hub):
    fetch("org/model")
    hub.requests.clear()
    fetch("org/model")
    assert hub.fetched() == set()
    fetch("org/model", force_download=True)
    assert hub.fetched() == {*SIDE, "model.safetensors"}


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    hub.repos["org/model"].token = "hf_secret"
    fetch("org/model", token="hf_secret")
    elsewhere = [request for request in hub.requests if request.storage]
    assert [request.token for request in elsewhere] == [None]
    assert "hf_secret" in {request.token for request in hub.requests}
    assert "hf_secret" not in caplog.text + refusal(token="hf_secret", revision="gone")


def test_no_progress_bar_is_printed_where_nobody_watches(hub: Hub, tmp_path: Path):
    script = "import sys; from easydel.hub import fetch; print(fetch('org/model', cache_dir=sys.argv[1]))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", script, str(tmp_path / "elsewhere")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stderr == ""
    assert held(Path(result.stdout.strip())).keys() == {*SIDE, "model.safetensors"}


# Offline


@pytest.mark.parametrize("way", ["local_files_only", "HF_HUB_OFFLINE", "no connection", "server error"])
def test_a_complete_download_serves_when_the_hub_does_not(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
):
    hub.repos["org/model"] = Repo({**SIDE, **sharded("model", "safetensors")})
    assert "org/model" in refusal(local_files_only=True)
    folder = fetch("org/model")
    hub.requests.clear()
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif way == "no connection":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif way == "server error":
        hub.faults["org/model"] = Fault(503)
    assert fetch("org/model", local_files_only=way == "local_files_only") == folder
    assert (hub.requests == []) == (way != "server error")
    assert ("using the files downloaded earlier" in caplog.text) == (way != "local_files_only")


def test_an_incomplete_download_does_not_serve_offline_and_says_what_is_missing(hub: Hub):
    hub.repos["org/model"] = Repo({**SIDE, **sharded("model", "safetensors")})
    fetch("org/model", weights=False)
    message = refusal(local_files_only=True)
    assert "local_files_only forbids downloading" in message
    assert "has no weights" in message
    assert fetch("org/model", weights=False, local_files_only=True).is_dir()
    (fetch("org/model") / "model-00002-of-00002.safetensors").unlink()
    assert "- model-00002-of-00002.safetensors" in refusal(local_files_only=True)


def test_forcing_a_download_does_not_settle_for_the_cache(hub: Hub):
    fetch("org/model")
    hub.faults["org/model"] = Fault(503)
    assert "the Hub answered 503 Service Unavailable (tried 4 times); load it again later" in refusal(
        force_download=True
    )
    with pytest.raises(ArgumentError, match="exclude each other"):
        fetch("org/model", force_download=True, local_files_only=True)


# Refusals


@pytest.mark.parametrize(
    ("fault", "problem", "hint"),
    [
        (Fault(401, "GatedRepo"), "is gated", "ask for access at http.*/org/model, then log in with `hf auth login`"),
        (Fault(403, "GatedRepo"), "is gated", "ask for access at http.*/org/model$"),
        (Fault(401, "", "Invalid credentials in Authorization header"), "does not accept the token", "log in"),
        (Fault(403, "", "token has no scope"), "forbids access .token has no scope.", "needs permission to read"),
        (Fault(404, "RepoNotFound"), "no such repository", "check the spelling; if it is private, log in"),
        (Fault(404, "RevisionNotFound"), "no revision 'main'", "lists branches and tags"),
        (Fault(429), "no more requests", "wait"),
        (Fault(500), "answered 500 Internal Server Error", "load it again later"),
        (Fault(418), "answered 418", "see http.*/org/model"),
    ],
    ids=lambda value: f"{value.status}{value.code}" if isinstance(value, Fault) else "",
)
def test_each_refusal_of_the_hub_says_what_to_do(hub: Hub, fault: Fault, problem: str, hint: str):
    hub.faults["api/models/org/model"] = fault
    with pytest.raises(HubError, match=problem) as caught:
        fetch("org/model")
    assert caught.value.file == "org/model"
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_lists_its_files_but_refuses_to_send_them(hub: Hub):
    hub.repos["org/model"] = Repo(dict(ONE), gated=True, token="hf_member")
    assert "is gated, and you have no access yet" in refusal()
    assert "is gated" in refusal(token="hf_stranger")
    assert held(fetch("org/model", token="hf_member")).keys() == {*SIDE, "model.safetensors"}


def test_a_repository_or_revision_that_is_not_there_is_named(hub: Hub):
    assert "org/modle: there is no such repository" in refusal("org/modle")
    assert "org/model: has no revision 'v9'" in refusal(revision="v9")


def test_a_listed_file_that_is_not_there_is_named(hub: Hub):
    hub.faults["config.json"] = Fault(404, "EntryNotFound")
    assert "config.json" in refusal()


def test_no_connection_and_no_cache_names_the_address(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refusal()
    assert "the Hub at http://127.0.0.1:9 cannot be reached" in message
    assert message.endswith("check the connection, or pass a local directory")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"id": "a", "sha": "../.."}'])
def test_an_answer_that_is_no_listing_is_a_hub_error(hub: Hub, monkeypatch: pytest.MonkeyPatch, content: bytes):
    monkeypatch.setattr("hub_server.Handler.answer_api", lambda handler, *_: handler.send(200, content, {}))
    assert re.search("cannot be downloaded|names no commit", refusal())


def test_a_repository_without_weights_lists_what_it_has(hub: Hub):
    hub.repos["org/model"] = Repo({"config.json": b"{}", "model.msgpack": b"f"})
    message = refusal()
    assert "org/model: has no weights; it holds config.json, model.msgpack" in message
    assert "expected one of model.safetensors" in message


def test_several_gguf_files_ask_for_a_choice(hub: Hub):
    hub.repos["org/model"] = Repo({"m.Q4_0.gguf": b"4", "m.Q8_0.gguf": b"8"})
    assert "has 2 GGUF files: m.Q4_0.gguf, m.Q8_0.gguf; download one of them, and pass its path" in refusal()


def test_shards_missing_from_the_repository_are_all_listed(hub: Hub):
    hub.repos["org/model"] = Repo({**SIDE, "model.safetensors.index.json": index("a.safetensors", "b.safetensors")})
    message = refusal()
    assert "- a.safetensors" in message
    assert "- b.safetensors" in message
    assert "model.safetensors.index.json" in hub.fetched()


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": {}}}', index("../x.bin"), index("/etc/passwd")],
)
def test_a_broken_or_hostile_index_is_refused(hub: Hub, content: bytes):
    hub.repos["org/model"] = Repo({**SIDE, "model.safetensors.index.json": content})
    with pytest.raises(CheckpointError, match="index"):
        fetch("org/model")
    assert hub.fetched() == {"model.safetensors.index.json"}
