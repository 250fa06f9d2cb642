"""Files that are not regular, links out of the directory, and directories that lack something."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bad_inputs import Bad
from bad_inputs.valid import WEIGHTS, write_config, write_safetensors, write_sharded


def instead(name: str, file: str, put: Callable[[Path], object], *words: str, error_file: str | None = None) -> Bad:
    """`put` makes something else where `file` was."""

    def spoil(directory: Path) -> None:
        (directory / file).unlink()
        put(directory / file)

    return Bad(f"{name}-for-{file}", spoil, words, file if error_file is None else error_file)


def outside(file: Path, name: str = "secret") -> Path:
    """A valid file outside of the directory of `file`, which must not be opened."""
    place = file.parent.parent / "outside"
    place.mkdir(exist_ok=True)
    write_safetensors(place)
    (place / "secret").write_bytes((place / WEIGHTS).read_bytes())
    return place / (file.name if name == "same" else name)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def lone_fifo(directory: Path) -> Path:
    (directory / WEIGHTS).unlink()
    fifo(directory / WEIGHTS)
    return directory / WEIGHTS


def linked_shard(directory: Path) -> None:
    write_sharded(directory)
    shard = directory / "model-00002-of-00002.safetensors"
    os.rename(shard, outside(shard, shard.name))
    shard.symlink_to(outside(shard, shard.name))


def linked_generation_config(directory: Path) -> None:
    file = directory / "generation_config.json"
    file.symlink_to(outside(file, "config.json"))


def fake_cache(directory: Path) -> None:
    """A directory called blobs is not enough: the directory itself has to be a snapshot."""
    blobs = directory.parent / "blobs"
    blobs.mkdir()
    os.rename(directory / WEIGHTS, blobs / "0")
    (directory / WEIGHTS).symlink_to("../blobs/0")


def out_of_snapshot(directory: Path) -> Path:
    snapshot = directory / "cache" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    write_config(snapshot)
    (snapshot / WEIGHTS).symlink_to(outside(directory / WEIGHTS, "secret"))
    return snapshot


def only(*names: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        for file in directory.iterdir():
            if file.name not in names:
                file.unlink()

    return spoil


def two_ggufs(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    for name in ("a.gguf", "b.gguf"):
        (directory / name).write_bytes(b"GGUF")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


BAD = [
    *(instead("fifo", file, fifo, "not a regular file") for file in (WEIGHTS, "config.json")),
    *(instead("directory", file, lambda path: path.mkdir(), "not a regular file") for file in (WEIGHTS, "config.json")),
    instead("device", WEIGHTS, device, "not a regular file"),
    instead("device", "config.json", device, "link out of the directory", error_file=""),
    instead("dangling", WEIGHTS, lambda path: path.symlink_to("gone"), "dangling"),
    instead("dangling", "config.json", lambda path: path.symlink_to("gone"), "no such file"),
    instead("loop", WEIGHTS, lambda path: path.symlink_to(path.name)),
    instead("loop", "config.json", lambda path: path.symlink_to(path.name)),
    instead("link-out", WEIGHTS, lambda path: path.symlink_to(outside(path)), "link out", "secret", error_file=""),
    instead(
        "link-out-same-name", WEIGHTS, lambda path: path.symlink_to(outside(path, "same")), "link out", error_file=""
    ),
    instead("link-out", "config.json", lambda path: path.symlink_to(outside(path, "same")), "link out", error_file=""),
    instead(
        "link-out-relative",
        WEIGHTS,
        lambda path: outside(path) and path.symlink_to("../outside/secret"),
        "link out",
        error_file="",
    ),
    Bad("link-out-for-a-shard", linked_shard, ("link out", "model-00002-of-00002")),
    Bad("link-out-for-generation_config", linked_generation_config, ("link out", "generation_config.json")),
    Bad("link-to-blobs-without-a-cache", fake_cache, ("link out",)),
    Bad("link-out-of-a-cache", out_of_snapshot, ("link out",)),
    Bad("fifo-passed-itself", lone_fifo, ("not a regular file",), WEIGHTS),
    Bad("empty-directory", only(), ("no weights", "nothing")),
    Bad("no-weights", only("config.json"), ("no weights", "config.json")),
    Bad("no-config", only(WEIGHTS), ("no such file",), "config.json"),
    Bad("two-ggufs", two_ggufs, ("2 GGUF files", "a.gguf", "b.gguf")),
    Bad("missing-directory", lambda directory: directory / "gone", ("no such file",)),
    Bad("config-passed", lambda directory: directory / "config.json", ("not a file of weights",), "config.json"),
    Bad(
        "not-saved-here", lambda directory: None, ("save_pretrained",), "easydel.json", arguments={"from_torch": False}
    ),
]


def manifest(name: str, text: str, *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        (directory / "easydel.json").write_text(text)

    return Bad(f"manifest-{name}", spoil, words, "easydel.json", arguments={"from_torch": False})


BAD += [
    manifest("empty", "", "not a manifest"),
    manifest("list", "[]", "not a manifest"),
    manifest("number", "5", "not a manifest"),
    manifest("without-int8", '{"format": 1}', "not a manifest"),
    manifest("int8-number", '{"format": 1, "int8": 5}', "not a manifest"),
    manifest("int8-of-numbers", '{"format": 1, "int8": [5]}'),
    manifest("newer", '{"format": 99, "int8": []}', "99"),
    manifest("deep", "[" * 100_000, "not a manifest"),
]
