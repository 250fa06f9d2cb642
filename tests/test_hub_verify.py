"""Files that differ from the Hub's hash are found, fetched once more, and refused; and they are found only once."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Fault, Handler, Hub, Repo, git_id, serving, sha256
from huggingface_hub import constants, scan_cache_dir

from easydel.errors import HubError
from easydel.hub import fetch, verify

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b'{"a": 1}', "tokenizer.json": b'{"b": 2}', "model.safetensors": WEIGHTS}
BAD = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])  # what a Fault of the body "corrupt" makes of it


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch, tmp_path) as hub:
        hub.repos["org/model"] = Repo(dict(FILES))
        yield hub


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of hashes that were computed of files, in any order."""
    kinds: list[str] = []
    compute = verify._hash
    monkeypatch.setattr(verify, "_hash", lambda file, kind, size: (kinds.append(kind), compute(file, kind, size))[1])
    return kinds


def refusal(**options: object) -> str:
    with pytest.raises(HubError) as caught:
        fetch("org/model", **options)  # type: ignore[arg-type]
    return str(caught.value)


def loads(**options: object) -> bool:
    folder = fetch("org/model", **options)  # type: ignore[arg-type]
    return {file.name: file.read_bytes() for file in folder.iterdir()} == FILES


def damage(file: Path) -> None:
    """Change a byte in the cache, behind huggingface_hub's back."""
    content = file.read_bytes()
    file.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_arrives_damaged_is_fetched_once_more(hub: Hub, name: str, caplog: pytest.LogCaptureFixture):
    hub.faults[name] = Fault(body="corrupt", times=1)
    assert loads()
    assert f"org/model: {name} has " in caplog.text
    sent = [request for request in hub.requests if request.method == "GET" and request.path.endswith(name)]
    assert len([request for request in sent if request.storage or not name.endswith("safetensors")]) == 2


@pytest.mark.parametrize(
    ("name", "kind", "state"),
    [
        ("config.json", "git id", git_id),
        ("model.safetensors", "sha256", sha256),
    ],
)
def test_a_file_that_arrives_damaged_twice_is_refused_with_both_hashes(hub: Hub, name: str, kind: str, state):
    hub.faults[name] = Fault(body="corrupt")
    message = refusal()
    content = FILES[name]
    bad = content[:-1] + bytes([content[-1] ^ 1])
    assert (
        f"{name} is damaged, twice: it has {kind} {state(bad)}, but the Hub states {kind} {state(content)}" in message
    )
    hub.faults.clear()
    with pytest.raises(HubError, match="does not hold all of it"):  # nothing of it stays to be loaded offline
        fetch("org/model", local_files_only=True)
    assert loads()


def test_a_damaged_blob_does_not_stay_on_disk(hub: Hub, tmp_path: Path):
    hub.faults["model.safetensors"] = Fault(body="corrupt")
    refusal()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.read_bytes() == BAD]
    assert not [file for file in tmp_path.rglob("*") if file.is_symlink() and not file.exists()]


def test_each_file_is_hashed_once(hub: Hub, hashed: list[str]):
    assert loads()
    assert sorted(hashed) == ["sha1", "sha1", "sha256"]
    hashed.clear()
    assert loads()
    assert loads(local_files_only=True)
    assert hashed == []
    assert loads(force_download=True)
    assert len(hashed) == 3


def test_a_new_commit_hashes_only_what_changed(hub: Hub, hashed: list[str]):
    assert loads()
    hashed.clear()
    hub.repos["org/model"].files["config.json"] = b'{"new": 1}'
    fetch("org/model")
    assert hashed == ["sha1"]


def test_damage_in_the_cache_is_found_and_repaired_by_the_next_load(hub: Hub):
    damage(fetch("org/model") / "model.safetensors")
    assert loads()
    assert len([request for request in hub.requests if request.storage and request.method == "GET"]) == 2


def test_a_file_that_another_program_downloaded_is_verified_too(hub: Hub, hashed: list[str], tmp_path: Path):
    folder = fetch("org/model")
    for note in (folder.parent.parent / ".easydel").rglob("*"):
        if note.is_file():
            note.unlink()
    hashed.clear()
    stat = (folder / "model.safetensors").stat()
    damage(folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert loads()
    assert len(hashed) == 4  # one of them again


def test_offline_damage_is_refused_with_both_hashes(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    damage(fetch("org/model") / "model.safetensors")
    message = refusal(local_files_only=True)
    assert "local_files_only forbids downloading, and the cache holds damaged files" in message
    assert f"- model.safetensors has sha256 {sha256(BAD)}, not sha256 {sha256(WEIGHTS)}" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids downloading, and the cache holds damaged files" in refusal()


def test_a_note_that_is_broken_or_cannot_be_written_only_costs_time(
    hub: Hub, hashed: list[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "easydel")
    notes = fetch("org/model").parent.parent / ".easydel"
    for note in notes.rglob("*"):
        if note.is_file():
            note.write_bytes(b"\xff")
    hashed.clear()
    assert loads()
    assert len(hashed) == 3
    for note in sorted(notes.rglob("*"), reverse=True):
        note.unlink() if note.is_file() else note.rmdir()
    notes.rmdir()
    notes.write_text("in the way")
    assert loads()
    assert "cannot be noted as verified" in caplog.text


def test_a_mirror_that_states_no_hashes_still_names_files_by_them(hub: Hub):
    hub.repos["org/model"].states_hashes = False
    assert loads(force_download=True)
    hub.faults["model.safetensors"] = Fault(body="corrupt")
    assert "is damaged, twice" in refusal(force_download=True)


def test_where_links_are_impossible_files_are_verified_all_the_same(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.faults["model.safetensors"] = Fault(body="corrupt", times=1)
    assert loads()
    assert not (fetch("org/model") / "model.safetensors").is_symlink()
    hashed.clear()
    assert loads()
    assert hashed == []
    damage(fetch("org/model") / "config.json")
    assert loads()


def test_a_file_without_any_stated_hash_is_loaded_with_a_warning(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    hub.repos["org/model"].states_hashes = False
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    assert loads()
    assert "the Hub states no hash of model.safetensors, so only its size was compared" in caplog.text


def test_the_notes_do_not_disturb_huggingface_hub(hub: Hub):
    assert loads()
    report = scan_cache_dir(constants.HF_HUB_CACHE)
    assert report.warnings == []
    assert [repo.repo_id for repo in report.repos] == ["org/model"]
    assert {file.file_name for repo in report.repos for rev in repo.revisions for file in rev.files} == set(FILES)
    assert {ref for repo in report.repos for ref in repo.refs} == {"main"}


def test_a_branch_moves_on_only_when_all_of_its_files_are_here(hub: Hub):
    old = fetch("org/model")
    hub.repos["org/model"].files["model.safetensors"] = b"new" * 100
    hub.faults["model.safetensors"] = Fault(404, storage=False)
    refusal()
    assert fetch("org/model", local_files_only=True) == old
    hub.faults.clear()
    assert fetch("org/model") != old
    assert fetch("org/model", local_files_only=True) != old


def test_a_branch_with_a_slash_serves_offline(hub: Hub):
    hub.repos["org/model"].branches += ("refs/pr/1",)
    folder = fetch("org/model", revision="refs/pr/1")
    assert fetch("org/model", revision="refs/pr/1", local_files_only=True) == folder


def test_a_revision_cannot_write_outside_the_cache(hub: Hub, tmp_path: Path):
    hub.repos["org/model"].branches += ("../../../out",)
    fetch("org/model", revision="../../../out")
    assert not list(tmp_path.rglob("out"))


def test_a_note_holds_for_one_hash_only(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    right = verify.Digest("sha256", sha256(b"content"))
    assert verify.differs(file, right, tmp_path) is None
    assert verify.differs(file, verify.Digest("sha256", sha256(b"other")), tmp_path) == right


def test_a_large_file_is_not_compared_with_the_git_id_of_its_pointer(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    detail = Handler.detail
    bare = lambda handler, name, content: {**detail(handler, name, content), "lfs": None}  # noqa: E731
    monkeypatch.setattr(Handler, "detail", bare)
    assert loads()


@pytest.mark.parametrize("size", [0, 1, 5, verify._BLOCK, verify._BLOCK + 3])
def test_hashing_in_blocks_equals_hashing_at_once(tmp_path: Path, size: int):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert verify._hash(tmp_path / "file", "sha256", size).hex == hashlib.sha256(content).hexdigest()
    assert verify._hash(tmp_path / "file", "sha1", size).hex == git_id(content)
