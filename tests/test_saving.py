"""Saving real models: at any moment, even if the writer dies or the disk is full, readers find one whole model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from bad_inputs.valid import write_safetensors, write_torch
from cases import SIZES, Case
from parity import make_reference

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, BaseNNXModule, CheckpointError, loading, source
from easydel.checkpoint import find_checkpoint, open_checkpoint, write as writing
from easydel.saving import export
from easydel.tree import flatten, unflatten

KINDS = {"save_pretrained": {"from_torch": False}, "export": {}, "shards": {}}
SHARD_BYTES = 20_000  # makes a few
SAVED = pytest.mark.parametrize("kind", KINDS)
KILLS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseNNXModule:
    directory = tmp_path_factory.mktemp("valid")
    write_safetensors(directory)
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0]


def filled(model: BaseNNXModule, value: float) -> dict[str, Any]:
    """The model's parameters, each everywhere `value`: what a mix of two saves would show in."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), model.params)


def write(model: BaseNNXModule, kind: str, place: Path, value: float) -> None:
    write_params(model, kind, place, filled(model, value))


def write_params(model: BaseNNXModule, kind: str, place: Path, params: dict[str, Any]) -> None:
    if kind != "shards":
        getattr(model, kind)(place, params)
        return
    assert model.names is not None
    export(
        place,
        params,
        model.canonical_paths(),
        model.config,
        model.names,
        {},
        origin=model.origin,
        max_shard_bytes=SHARD_BYTES,
    )


def value_of(place: Path) -> float:
    """The one value in all tensors of the checkpoint at `place`."""
    values = {
        float(value)
        for tensor in open_checkpoint(find_checkpoint(place)).values()
        for value in np.unique(tensor.read())
    }
    assert len(values) == 1, values
    return values.pop()


def loads(place: Path, kind: str) -> bool:
    return bool(AutoEasyDeLModelForCausalLM.from_pretrained(place, **KINDS[kind]))


# Counts every system call that changes the file system, and kills the process at the one asked for.
WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import jax, numpy as np
from easydel import AutoEasyDeLModelForCausalLM
from easydel.checkpoint import atomic, write
from test_saving import filled, write_params

def counted(owner, name, state):
    function = getattr(owner, name)
    def call(*arguments, **options):
        state["calls"] += 1
        if state["calls"] == state["last"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(owner, name, call)

model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[2])
params, kind = filled(model, 2.0), sys.argv[4]
for place in sorted(Path(sys.argv[3]).iterdir(), key=lambda path: int(path.name)):
    if (child := os.fork()) == 0:
        state = {"calls": 0, "last": int(place.name)}
        for name in ("fsync", "link", "mkdir", "rename", "unlink", "rmdir"):
            counted(os, name, state)
        counted(atomic, "_exchange", state)
        counted(write, "_write_values", state)
        write_params(model, kind, place / "model", params)
        os._exit(0)
    print(place.name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_what_save_pretrained_wrote_is_loaded_by_the_class_of_the_model(model: BaseNNXModule, tmp_path: Path):
    model.save_pretrained(tmp_path / "saved")
    again, params = BaseNNXModule.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    assert type(again) is BaseNNXModule
    assert again.policy.dtype == "bfloat16", "the arguments of a load are taken"
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_the_class_of_the_model_loads_nothing_that_transformers_wrote(model: BaseNNXModule, tmp_path: Path):
    model.export(tmp_path / "exported")
    with pytest.raises(CheckpointError, match="from_torch=False is for directories written by save_pretrained"):
        BaseNNXModule.from_pretrained(tmp_path / "exported")
    with pytest.raises(ArgumentError, match="from_torch is always False here; AutoEasyDeLModelForCausalLM"):
        BaseNNXModule.from_pretrained(tmp_path / "exported", from_torch=True)


@SAVED
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_save_killed_at_any_point_leaves_one_whole_model(model: BaseNNXModule, tmp_path: Path, kind: str):
    write(model, kind, tmp_path / "old", 1.0)
    steps = [*range(1, 46), 1000]  # there are about 35
    for step in steps:
        shutil.copytree(tmp_path / "old", tmp_path / "kills" / str(step) / "model")
    arguments = [str(Path(__file__).parent), str(model.origin), str(tmp_path / "kills"), kind]
    ended = subprocess.run([sys.executable, "-c", WRITER, *arguments], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    statuses = {int(line.split()[0]): int(line.split()[1]) for line in ended.stdout.splitlines()}
    killed = [step for step in steps if statuses[step] == -9]
    assert statuses[1000] == 0
    assert len(killed) >= KILLS
    found = [value_of(tmp_path / "kills" / str(step) / "model") for step in steps]
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}
    for step in (killed[0], killed[len(killed) // 2], killed[-1]):
        place = tmp_path / "kills" / str(step)
        assert loads(place / "model", kind)
        write(model, kind, place / "model", 3.0)
        assert os.listdir(place) == ["model"], "what the dead left is removed by the next save"
        assert value_of(place / "model") == 3.0


@SAVED
def test_a_full_disk_leaves_the_old_model(
    model: BaseNNXModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    place = tmp_path / "model"
    write(model, kind, place, 1.0)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    real = writing._write_values
    written = 0

    def full(handle: int, start: int, entry: Any) -> None:
        nonlocal written
        written += 1
        if written > 7:
            raise OSError(28, os.strerror(28))
        real(handle, start, entry)

    monkeypatch.setattr(writing, "_write_values", full)
    with pytest.raises(CheckpointError, match=f"^{place}: .*No space left.*what was there is unchanged"):
        write(model, kind, place, 2.0)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert os.listdir(tmp_path) == ["model"]


@SAVED
def test_a_disk_that_is_full_at_a_small_file_leaves_the_old_model(
    model: BaseNNXModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    write(model, kind, tmp_path / "model", 1.0)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        write(model, kind, tmp_path / "model", 2.0)
    assert caught.value.file == str(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert value_of(tmp_path / "model") == 1.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", place], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield place
    subprocess.run(["umount", place], check=True)


@SAVED
def test_a_really_full_disk_leaves_the_old_model(model: BaseNNXModule, small_disk: Path, kind: str):
    write(model, kind, small_disk / "model", 1.0)  # takes about half of it
    (small_disk / "other").write_bytes(bytes(16 << 10))
    with pytest.raises(CheckpointError, match=rf"^{small_disk / 'model'}: .*(the disk has|No space left).*unchanged"):
        write(model, kind, small_disk / "model", 2.0)
    assert value_of(small_disk / "model") == 1.0
    assert sorted(os.listdir(small_disk)) == ["model", "other"]


@SAVED
@pytest.mark.parametrize(("step", "moment"), [(source, "open_checkpoint"), (loading, "execute")])
def test_a_model_that_is_replaced_while_it_is_read_is_an_error(
    model: BaseNNXModule, tmp_path: Path, kind: str, step: Any, moment: str, monkeypatch: pytest.MonkeyPatch
):
    write(model, kind, tmp_path / "place", 1.0)
    original = getattr(step, moment)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        write(model, kind, tmp_path / "place", 2.0)
        return original(*args, **kwargs)

    monkeypatch.setattr(step, moment, replaced)
    with pytest.raises(CheckpointError, match=r"place: was replaced while it was read; load it again"):
        loads(tmp_path / "place", kind)
    monkeypatch.undo()
    assert loads(tmp_path / "place", kind)


@SAVED
def test_writers_and_readers_at_once_see_whole_models(model: BaseNNXModule, tmp_path: Path, kind: str):
    place, errors, seen = tmp_path / "model", [], set()
    write(model, kind, place, 1.0)
    done = threading.Event()

    def save(value: float) -> None:
        try:
            for _ in range(5):
                write(model, kind, place, value)
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        try:
            while not done.is_set():
                seen.add(snapshot(place))
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=save, args=(value,)) for value in (2.0, 3.0)]
    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert errors == []
    assert seen <= {1.0, 2.0, 3.0}
    assert value_of(place) in (2.0, 3.0)
    assert loads(place, kind)
    assert os.listdir(tmp_path) == ["model"]


def snapshot(place: Path) -> float:
    """The value in a file that is opened once, as a reader that came before an exchange goes on reading it."""
    names = ("model.safetensors", "easydel.safetensors", "model-00001-of-00003.safetensors")
    file = next(place / name for name in names if (place / name).exists())
    header, *rest = file.read_bytes().split(b"}", 1)
    assert header
    return float(np.frombuffer(rest[0][-4:], np.float32)[0])


@pytest.mark.parametrize("kind", ["export", "shards"])
@pytest.mark.parametrize("before", ["export", "shards", "save_pretrained", "torch"])
def test_nothing_of_another_model_in_the_directory_survives(
    model: BaseNNXModule, tmp_path: Path, kind: str, before: str
):
    place = tmp_path / "model"
    if before == "torch":
        place.mkdir()
        write_torch(place)
    else:
        write(model, before, place, 1.0)
    (place / "README.md").write_text("mine")
    write(model, kind, place, 2.0)
    assert value_of(place) == 2.0
    assert loads(place, kind)
    write(model, kind, tmp_path / "fresh", 2.0)
    assert sorted(os.listdir(place)) == sorted([*os.listdir(tmp_path / "fresh"), "README.md"])


@pytest.mark.parametrize("kind", ["save_pretrained", "export"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head/kernel": None}, "lm_head/kernel is missing"),
        ({"lm_head/kernel_scale": np.ones(3, np.float32)}, "lm_head/kernel_scale is not the model's"),
        ({"lm_head/kernel": np.ones((3, 3), np.float32)}, r"lm_head/kernel is \[3, 3\], the model's \[\d+, \d+\]"),
        ({"lm_head/kernel": np.int8}, "lm_head/kernel is int8, the model's float32"),
        ({"lm_head/kernel": np.int32}, "lm_head/kernel is int32, the model's float32"),
    ],
)
def test_parameters_of_another_model_are_not_written(
    model: BaseNNXModule, tmp_path: Path, kind: str, change: dict[str, Any], message: str
):
    given = flatten(filled(model, 1.0))
    for path, value in change.items():
        given[path] = given[path].astype(value) if isinstance(value, type) else value
    params = unflatten({path: value for path, value in given.items() if value is not None})
    with pytest.raises(ArgumentError, match=message):
        getattr(model, kind)(tmp_path / "model", params)
    with pytest.raises(ArgumentError, match="is missing"):
        getattr(model, kind)(tmp_path / "model", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_layers_of_which_some_are_quantized_are_stacked_apart(bits: str, larger: Path, tmp_path: Path):
    load = AutoEasyDeLModelForCausalLM.from_pretrained
    partly, params = load(larger, **{bits: True}, bit_targeted_params=["model/layers/0/self_attn"])
    partly.save_pretrained(tmp_path / "saved")
    scanned, stacked = load(tmp_path / "saved", from_torch=False, scan_layers=True)
    layers = stacked["model"]["layers"]
    assert set(layers) == {"0", "1"}
    assert layers["1"]["self_attn"]["q_proj"]["kernel"].shape == (3, 192, 192)
    for leaf in ("kernel", "kernel_scale"):
        one = params["model"]["layers"]["0"]["self_attn"]["q_proj"][leaf]
        np.testing.assert_array_equal(layers["0"]["self_attn"]["q_proj"][leaf], one)
    ids = np.arange(6)[None]
    np.testing.assert_allclose(scanned(ids).logits, partly(ids).logits, rtol=1e-5, atol=1e-5)
    floats = load(tmp_path / "saved", from_torch=False, scan_layers=True, dequantize=True)[1]
    assert floats["model"]["layers"]["self_attn"]["q_proj"]["kernel"].shape == (4, 192, 192)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose parameters, 6 MB, are more than what programs and their arguments take."""
    directory = tmp_path_factory.mktemp("larger")
    sizes = {"hidden_size": 192, "intermediate_size": 512, "vocab_size": 1024, "num_hidden_layers": 4}
    make_reference(Case("llama-larger", "llama", SIZES | sizes), directory)
    return directory


@pytest.mark.parametrize("method", ["save_pretrained", "export"])
@pytest.mark.parametrize("arguments", [{}, {"scan_layers": True}, {"load_in_8bit": True}], ids=str)
def test_saving_parameters_that_are_split_keeps_no_copy_of_them(
    larger: Path, tmp_path: Path, arguments: dict[str, Any], method: str
):
    mesh = {"auto_shard_params": True, "sharding_axis_dims": (1, 8, 1, 1)}
    split, params = AutoEasyDeLModelForCausalLM.from_pretrained(larger, **mesh, **arguments)
    tracemalloc.start()
    getattr(split, method)(tmp_path / "model")
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    left = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)
    tracemalloc.stop()
    assert left < min(leaf.nbytes for leaf in jax.tree.leaves(params) if leaf.ndim > 1)


def test_transformers_refuses_what_save_pretrained_wrote(model: BaseNNXModule, tmp_path: Path):
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_directory_of_before_with_the_names_of_hugging_face_loads(model: BaseNNXModule, tmp_path: Path):
    model.save_pretrained(tmp_path)
    (tmp_path / "easydel.safetensors").rename(tmp_path / "model.safetensors")
    loaded, _ = BaseNNXModule.from_pretrained(tmp_path)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded.params, model.params)))
