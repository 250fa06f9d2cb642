"""Written checkpoints have the given tensors, load by mapping, and replace the old files as a whole or not at all."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
from safetensors.numpy import load_file

from easydel.checkpoint import atomic, find_checkpoint, open_checkpoint
from easydel.checkpoint.safetensors import DTYPES
from easydel.checkpoint.write import MAX_THREADS, atomic_directory, recover_directory, write_safetensors
from easydel.errors import CheckpointError
from easydel.threads import thread_count


def entry(name: str, array: np.ndarray) -> tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]:
    return name, array.shape, array.dtype, lambda: array


def sample() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"odd": (7,), "a": (16, 16), "flag": (3,), "b": (5, 64), "scalar": (), "empty": (0, 3), "c": (12, 11)}
    dtypes = {"flag": np.dtype(bool), "b": np.dtype(ml_dtypes.bfloat16), "odd": np.dtype(np.int8)}
    return {name: random.normal(size=shape).astype(dtypes.get(name, np.float32)) for name, shape in shapes.items()}


def test_written_tensors_read_back_here_and_with_the_reference(tmp_path: Path):
    values = sample()
    (file,) = write_safetensors(tmp_path, [entry(*item) for item in values.items()], metadata={"format": "pt"})
    checkpoint = open_checkpoint(find_checkpoint(tmp_path))
    reference = load_file(file)
    assert set(checkpoint) == set(values) == set(reference) == set(safetensors.torch.load_file(file))
    assert checkpoint.metadata == {"format": "pt"}
    for name, value in values.items():
        assert checkpoint[name].read().tobytes() == value.tobytes()
        assert checkpoint[name].shape == value.shape == reference[name].shape
        assert reference[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_is_written(tmp_path: Path, dtype: np.dtype):
    value = np.arange(24, dtype=np.uint8).repeat(dtype.itemsize).view(np.uint8) % 2
    array = value.view(dtype)
    write_safetensors(tmp_path, [entry("x", array)])
    assert open_checkpoint(find_checkpoint(tmp_path))["x"].read().tobytes() == array.tobytes()


def test_data_is_aligned_for_mapping(tmp_path: Path):
    write_safetensors(tmp_path, [entry(*item) for item in sample().items()])
    checkpoint = open_checkpoint(find_checkpoint(tmp_path))
    assert min(tensor.offset for tensor in checkpoint.values()) % 4096 == 0
    for tensor in checkpoint.values():
        aligned = 64 if tensor.nbytes % 64 == 0 else tensor.dtype.itemsize
        assert tensor.offset % aligned == 0, tensor.name
        assert tensor.read().ctypes.data % aligned == 0


def test_tensors_of_usual_sizes_stay_in_the_order_given(tmp_path: Path):
    names = ["z", "a", "m", "b"]
    write_safetensors(tmp_path, [entry(name, np.ones((4, 16), np.float32)) for name in names])
    assert list(open_checkpoint(find_checkpoint(tmp_path))) == names


def test_strided_arrays_are_written_in_row_major_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("easydel.checkpoint.write._CHUNK_BYTES", 256)
    array = np.arange(64 * 30, dtype=np.float32).reshape(30, 64).T[:, ::2]
    write_safetensors(tmp_path, [entry("x", array)])
    np.testing.assert_array_equal(open_checkpoint(find_checkpoint(tmp_path))["x"].read(), array)


def test_shards_stay_below_their_limit_and_the_index_names_them(tmp_path: Path):
    values = {f"t{number}": np.full(size, number, np.float32) for number, size in enumerate([20, 30, 10, 100, 5, 60])}
    files = write_safetensors(tmp_path, [entry(*item) for item in values.items()], max_shard_bytes=240)
    assert [file.name for file in files] == [
        "model.safetensors.index.json",
        *(f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)),
    ]
    index = json.loads(files[0].read_text())
    assert index["metadata"] == {"total_size": 4 * 225}
    assert [sorted(load_file(file)) for file in files[1:]] == [["t0", "t1", "t2"], ["t3"], ["t4"], ["t5"]]
    checkpoint = open_checkpoint(find_checkpoint(tmp_path))
    assert {name: tensor.read().tolist() for name, tensor in checkpoint.items()} == {
        name: value.tolist() for name, value in values.items()
    }


def test_each_thread_has_one_tensor_in_memory_at_a_time(tmp_path: Path):
    threads = thread_count(MAX_THREADS)

    def values() -> np.ndarray:
        return np.ones((1024, 1024), np.float32)

    entries = [(f"t{number}", (1024, 1024), np.dtype(np.float32), values) for number in range(6 * threads)]
    tracemalloc.start()
    write_safetensors(tmp_path, entries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (threads + 0.2) * (4 << 20)


def test_all_names_and_dtypes_that_cannot_be_written_are_listed(tmp_path: Path):
    bad = [
        entry("a", np.ones(2)),
        entry("a", np.ones(2)),
        entry("__metadata__", np.ones(2)),
        entry("s", np.array(["x"])),
        entry("f", np.ones(2, ml_dtypes.float4_e2m1fn)),
    ]
    with pytest.raises(CheckpointError, match=r"(?s)4 problems.*'a'.*'__metadata__'.*'s'.*'f'"):
        write_safetensors(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_told_before_anything_is_written(tmp_path: Path):
    huge = ("x", (2**50,), np.dtype(np.float32), lambda: np.ones(1, np.float32))
    message = f"^{tmp_path / 'model'}: cannot be written: needs 4503599627370496 bytes.*what was there is unchanged"
    with pytest.raises(CheckpointError, match=message), atomic_directory(tmp_path / "model") as fresh:
        write_safetensors(fresh, [huge])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(atomic, "_exchange", lambda left, right: False)
    return request.param


def both_ways(function: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "renames"], indirect=True)(function)


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def old_model(directory: Path) -> Path:
    model = directory / "model"
    (model / "runs" / "1").mkdir(parents=True)
    files = {
        "model.safetensors": "old",
        "model-00002-of-00003.safetensors": "old",
        "easydel.json": "old",
        "config.json": "old",
        "adapter_model.safetensors": "mine",
        "README.md": "mine",
        "runs/1/log": "mine",
    }
    for name, text in files.items():
        (model / name).write_text(text)
    return model


def test_new_directory_appears_whole(tmp_path: Path):
    target = tmp_path / "deep" / "model"
    with atomic_directory(target) as fresh:
        (fresh / "a").write_text("new")
        assert not target.exists()
    assert contents(target) == {"a": "new"}
    assert os.listdir(target.parent) == ["model"]


@both_ways
def test_replaced_directory_keeps_what_is_not_part_of_a_model(tmp_path: Path, exchange: bool):
    model = old_model(tmp_path)
    model.chmod(0o750)
    with atomic_directory(model) as fresh:
        (fresh / "model.safetensors").write_text("new")
        (fresh / "README.md").write_text("new")
    assert contents(model) == {
        "model.safetensors": "new",
        "README.md": "new",
        "adapter_model.safetensors": "mine",
        "runs/1/log": "mine",
    }
    assert model.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["model"]


@both_ways
def test_error_in_the_block_leaves_the_old_directory_and_no_litter(tmp_path: Path, exchange: bool):
    model = old_model(tmp_path)
    before = contents(model)
    with pytest.raises(KeyboardInterrupt), atomic_directory(model) as fresh:  # noqa: PT012
        (fresh / "model.safetensors").write_text("new")
        raise KeyboardInterrupt
    assert contents(model) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("target", ["", ".", "..", "/"])
def test_the_working_directory_is_not_replaced(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"the working directory|empty path"), atomic_directory(target):
        pytest.fail("there is a directory to write into")
    assert Path("notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_link_to_a_directory_goes_on_being_a_link(tmp_path: Path):
    model = old_model(tmp_path)
    (tmp_path / "link").symlink_to(model)
    with atomic_directory(tmp_path / "link") as fresh:
        (fresh / "model.safetensors").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (model / "model.safetensors").read_text() == "new"


def test_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"), atomic_directory(tmp_path / "model"):
        pass
    assert contents(tmp_path) == {"model": "mine"}


@pytest.mark.parametrize(("code", "words"), [(errno.EBUSY, "mount point"), (errno.ENOSPC, "unchanged")])
def test_system_errors_say_that_nothing_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
):
    model = old_model(tmp_path)
    before = contents(model)

    def fail(left: Path, right: Path) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "_exchange", fail)
    with pytest.raises(CheckpointError, match=words), atomic_directory(model) as fresh:
        (fresh / "model.safetensors").write_text("new")
    assert contents(model) == before
    assert os.listdir(tmp_path) == ["model"]


def test_two_writers_do_not_disturb_each_other(tmp_path: Path):
    with atomic_directory(tmp_path / "model") as first, atomic_directory(tmp_path / "model") as second:
        assert first != second
        (first / "a").write_text("first")
        (second / "a").write_text("second")
    assert contents(tmp_path / "model") == {"a": "first"}


WRITER = """
import os, signal, sys
from pathlib import Path
from easydel.checkpoint import atomic

def write(model, last, way):
    calls = 0
    def counted(place, name):
        function = getattr(place, name)
        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)
        setattr(place, name, call)
    if way == "renames":
        atomic._exchange = lambda left, right: False
    for name in ("fsync", "link", "mkdir", "rename", "unlink", "rmdir"):
        counted(os, name)
    counted(atomic, "_exchange")
    with atomic.atomic_directory(model) as fresh:
        (fresh / "model.safetensors").write_text("new")
        (fresh / "config.json").write_text("new")

for step in range(1, 100):
    child = os.fork()
    if child == 0:
        write(Path(sys.argv[1], str(step), "model"), step, sys.argv[2])
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(f"{step} {status}")
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_writer_killed_at_any_step_leaves_the_old_or_the_new_directory(tmp_path: Path, way: str):
    models = [old_model(tmp_path / str(step)) for step in range(1, 100)]
    old = contents(models[0])
    mine = {"adapter_model.safetensors": "mine", "README.md": "mine", "runs/1/log": "mine"}
    new = {"model.safetensors": "new", "config.json": "new", **mine}
    ended = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), way], capture_output=True, text=True)
    steps, status = map(int, ended.stderr.split())
    assert status == 0
    assert steps > 20
    replaced: list[bool] = []
    for model in models[:steps]:
        if way == "renames":
            recover_directory(model)
        assert contents(model) in (old, new)
        replaced.append(contents(model) == new)
        with atomic_directory(model) as fresh:
            (fresh / "model.safetensors").write_text("newer")
        assert contents(model) == {"model.safetensors": "newer", **mine}
        assert os.listdir(model.parent) == ["model"]
    assert replaced == sorted(replaced)
    assert set(replaced) == {False, True}


def test_load_recovers_what_a_dead_writer_renamed_away(tmp_path: Path):
    (tmp_path / "model.old-1-0123abcd").mkdir()
    write_safetensors(tmp_path / "model.old-1-0123abcd", [entry("x", np.ones(2, np.float32))])
    assert set(open_checkpoint(find_checkpoint(tmp_path / "model"))) == {"x"}


def test_directories_of_similar_names_are_not_litter(tmp_path: Path):
    names = ["model.tmp-backup", "model.old-1", "model2.tmp-1-0123abcd"]
    for name in names:
        (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "model"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(["model", *names])


def test_arrays_read_before_a_save_keep_their_values(tmp_path: Path):
    model = tmp_path / "model"
    for value in (1, 2):
        before: Any = open_checkpoint(find_checkpoint(model))["x"].read() if model.exists() else None
        with atomic_directory(model) as fresh:
            write_safetensors(fresh, [entry("x", np.full(4096, value, np.float32))])
        gc.collect()
    assert before.tolist() == [1] * 4096
    assert open_checkpoint(find_checkpoint(model))["x"].read().tolist() == [2] * 4096
