"""The choice of a directory's files that are the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from easydel.checkpoint import find_checkpoint, open_checkpoint
from easydel.errors import CheckpointError


def touch(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        index = {"weight_map": {"w": name.replace(".index.json", ".shard")}}
        (directory / name).write_text(json.dumps(index) if name.endswith(".json") else "x")


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
        (["pytorch_model.bin", "x.gguf"], ["pytorch_model.bin"]),
        (
            ["pytorch_model.bin", "model.safetensors.index.json", "model.safetensors.shard"],
            ["model.safetensors.index.json", "model.safetensors.shard"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model.bin.shard"],
            ["pytorch_model.bin.index.json", "pytorch_model.bin.shard"],
        ),
        (["x.gguf", "config.json"], ["x.gguf"]),
        (["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"], ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]),
    ],
)
def test_files_are_picked_by_preference(tmp_path: Path, present: list[str], expected: list[str]):
    touch(tmp_path, *present)
    assert find_checkpoint(tmp_path) == [tmp_path / name for name in expected]


def test_lone_file_is_itself(tmp_path: Path):
    touch(tmp_path, "any.gguf", "other.gguf")
    assert find_checkpoint(tmp_path / "any.gguf") == [tmp_path / "any.gguf"]


def test_several_gguf_files_are_named(tmp_path: Path):
    touch(tmp_path, "a.gguf", "b.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF files: a\.gguf, b\.gguf"):
        find_checkpoint(tmp_path)


def test_incomplete_gguf_split_is_an_error(tmp_path: Path):
    touch(tmp_path, "x-00001-of-00003.gguf", "x-00002-of-00003.gguf")
    for path in (tmp_path, tmp_path / "x-00001-of-00003.gguf"):
        with pytest.raises(CheckpointError, match=r"one of 00003 parts of a model; missing: x-00003-of-00003\.gguf"):
            find_checkpoint(path)


def test_a_part_of_a_split_gguf_means_all_parts(tmp_path: Path):
    parts = {model: [f"{model}-0000{number}-of-00002.gguf" for number in (1, 2)] for model in ("Q4", "Q8")}
    touch(tmp_path, *parts["Q4"], *parts["Q8"])
    for name in parts["Q8"]:
        assert find_checkpoint(tmp_path / name) == [tmp_path / part for part in parts["Q8"]]
    with pytest.raises(CheckpointError, match=r"2 GGUF files: Q4-00001-of-00002\.gguf, Q8-00001-of-00002\.gguf"):
        find_checkpoint(tmp_path)


def test_directory_without_weights_says_what_it_holds(tmp_path: Path):
    touch(tmp_path, "README.md")
    with pytest.raises(CheckpointError, match=r"no weights; it holds README\.md"):
        find_checkpoint(tmp_path)


def test_path_that_does_not_exist_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        find_checkpoint(tmp_path / "gone")


def test_link_out_of_the_directory_is_refused(tmp_path: Path):
    touch(tmp_path / "elsewhere", "secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "elsewhere" / "secret")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link out of the directory"):
        find_checkpoint(tmp_path / "model")


def test_links_of_the_hub_cache_are_followed(tmp_path: Path):
    touch(tmp_path / "blobs", "0123")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert find_checkpoint(snapshot) == [snapshot / "model.safetensors"]


def test_dangling_link_is_an_error_not_a_reason_to_take_another_file(tmp_path: Path):
    touch(tmp_path, "pytorch_model.bin")
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(CheckpointError, match="dangling link"):
        find_checkpoint(tmp_path)


def test_file_of_another_kind_is_an_error(tmp_path: Path):
    touch(tmp_path, "model.h5")
    with pytest.raises(CheckpointError, match="not a weight file"):
        open_checkpoint([tmp_path / "model.h5"])


def test_files_of_several_formats_are_an_error(tmp_path: Path):
    touch(tmp_path, "model.safetensors", "model.gguf")
    with pytest.raises(CheckpointError, match="several formats: gguf, safetensors"):
        open_checkpoint([tmp_path / "model.safetensors", tmp_path / "model.gguf"])


def test_no_files_are_an_error():
    with pytest.raises(CheckpointError, match="no weight files"):
        open_checkpoint([])
