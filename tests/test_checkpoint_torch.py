"""The reader of torch.save's files against torch, and its refusals."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_files import BOTH, refusal, save

from easydel.checkpoint import find_checkpoint, open_checkpoint
from easydel.checkpoint.torch_objects import DTYPES
from easydel.errors import CheckpointError


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def rezip(file: Path, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    """The archive written anew, each record replaced by what `change(name, content)` makes of it; None drops it."""
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            if (changed := change(name.partition("/")[2], content)) is not None:
                archive.writestr(name, changed)
    return file


@BOTH
@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in DTYPES], ids=str)
def test_every_dtype_reads_as_torch_wrote_it(tmp_path: Path, dtype: torch.dtype, zipped: bool):
    bits = torch.randint(0, 2, (5, 3, 16), dtype=torch.uint8)
    file = save({"x": bits.view(dtype), "tail": torch.ones(3)}, tmp_path / "pytorch_model.bin", zipped)
    checkpoint = open_checkpoint(find_checkpoint(tmp_path))
    assert checkpoint.format == "torch"
    assert checkpoint["x"].file == file
    assert checkpoint["x"].shape == tuple(bits.view(dtype).shape)
    assert checkpoint["x"].read().tobytes() == bits.numpy().tobytes()
    assert checkpoint["tail"].read().tolist() == [1, 1, 1]


@BOTH
def test_views_of_one_shared_storage_read_as_torch_reads_them(tmp_path: Path, zipped: bool):
    base = torch.arange(6 * 10 * 4, dtype=torch.float32).reshape(6, 10, 4)
    state = {
        "base": base,
        "part": base[1:4, 2:, 1],
        "transposed": base.permute(2, 0, 1),
        "stepped": base[::2, ::3],
        "expanded": base[0, 0, :1].expand(5, 7),
        "tied": base,
        "scalar": base[3, 3, 3],
        "empty": base[:, 10:],
        "parameter": torch.nn.Parameter(base[5]),
    }
    checkpoint = open_checkpoint([save(state, tmp_path / "m.bin", zipped)])
    assert set(checkpoint) == set(state)
    assert len({checkpoint[name].offset for name in ("base", "tied", "expanded")}) == 1
    for name, tensor in state.items():
        assert checkpoint[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(checkpoint[name].read(), tensor.detach().numpy())
    index = np.s_[1:3, ::2, 4:1:-1]
    np.testing.assert_array_equal(checkpoint["transposed"].read(index), state["transposed"].numpy()[index])


@BOTH
def test_reads_are_read_only_views(tmp_path: Path, zipped: bool):
    array = open_checkpoint([save({"w": torch.ones(4, 4)}, tmp_path / "m.bin", zipped)])["w"].read(np.s_[1:, 1:])
    assert not array.flags.writeable
    assert not array.flags.owndata


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_of_a_module_reads_in_every_pickle_protocol(tmp_path: Path, zipped: bool, protocol: int):
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    file = save(module.state_dict(), tmp_path / "m.bin", zipped, pickle_protocol=protocol)
    checkpoint = open_checkpoint([file])
    assert set(checkpoint) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert checkpoint[name].read().tobytes() == raw(tensor)


def test_names_stored_as_python_2_strings_are_read(tmp_path: Path):
    file = tmp_path / "m.bin"
    save({"w": torch.arange(6.0)}, file)
    change = {b"X\x01\x00\x00\x00w": b"U\x01w", b"X\x03\x00\x00\x00cpu": b"T\x03\x00\x00\x00cpu"}

    def older(name: str, content: bytes) -> bytes:
        for new, old in change.items() if name == "data.pkl" else ():
            assert new in content
            content = content.replace(new, old)
        return content

    assert open_checkpoint([rezip(file, older)])["w"].read().tolist() == [0, 1, 2, 3, 4, 5]


@BOTH
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_nested_state_dict_is_found_and_its_neighbours_are_named(tmp_path: Path, key: str, zipped: bool):
    value = {"epoch": 3, key: {"w": torch.ones(2)}, "optimizer": {"lr": [1.0]}}
    checkpoint = open_checkpoint([save(value, tmp_path / "m.bin", zipped)])
    assert set(checkpoint) == {"w"}
    assert checkpoint.metadata == {"ignored": ["epoch", "optimizer"]}


def test_flat_tensors_win_over_a_nested_dict(tmp_path: Path):
    file = save({"w": torch.ones(2), "model": {"x": torch.ones(3)}}, tmp_path / "m.bin")
    refusal(file, "neither a tensor nor a plain value", tensor="model")


def test_plain_values_beside_tensors_are_ignored_and_named(tmp_path: Path):
    value = {"w": torch.ones(2), "epoch": 3, "lr": 0.1, "name": "x", "flag": True, "none": None}
    checkpoint = open_checkpoint([save(value, tmp_path / "m.bin")])
    assert set(checkpoint) == {"w"}
    assert checkpoint.metadata == {"ignored": ["epoch", "lr", "name", "flag", "none"]}


def test_every_entry_that_is_neither_tensor_nor_plain_is_listed(tmp_path: Path):
    value = {"w": torch.ones(2), "size": torch.Size([1]), "list": [torch.ones(1)], 7: torch.ones(1)}
    refusal(save(value, tmp_path / "m.bin"), "3 problems", "'size'", "'list'", "the key 7", tensor="size")


@BOTH
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(2), "holds a tensor"),
        ([torch.ones(2)], "holds a list"),
        ({"a": {"w": torch.ones(2)}}, "no tensors, and no dict under state_dict or model"),
        ({"model": {"w": torch.ones(2)}, "state_dict": {"w": torch.ones(2)}}, "dicts under both"),
    ],
)
def test_value_that_is_no_state_dict_is_an_error(tmp_path: Path, value: object, words: str, zipped: bool):
    refusal(save(value, tmp_path / "m.bin", zipped), words)


def test_every_cut_of_a_legacy_file_is_an_error(tmp_path: Path):
    file = save({"w": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "m.bin", zipped=False)
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint([file])
        assert caught.value.file == str(file)


def test_every_cut_of_a_zip_file_is_an_error(tmp_path: Path):
    file = save({"w": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "m.bin")
    content = file.read_bytes()
    for size in range(0, len(content), 3):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint([file])
        assert caught.value.file == str(file)


@BOTH
def test_changed_bytes_never_raise_anything_else(tmp_path: Path, zipped: bool):
    file = save({"w": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "m.bin", zipped)
    content = file.read_bytes()
    random, loaded = np.random.default_rng(0), 0
    for _ in range(500):
        changed = bytearray(content)
        for position in random.integers(0, len(content), 3):
            changed[position] = random.integers(0, 256)
        file.write_bytes(changed)
        try:
            checkpoint = open_checkpoint([file])
        except CheckpointError:
            continue
        for tensor in checkpoint.values():
            tensor.read()
        loaded += 1
    assert 0 < loaded < 500


def test_truncated_legacy_storage_names_the_missing_bytes(tmp_path: Path):
    file = save({"w": torch.arange(6.0)}, tmp_path / "m.bin", zipped=False)
    file.write_bytes(file.read_bytes()[:-5])
    refusal(file, "truncated: 5 bytes of storage")


def test_legacy_storage_of_another_size_is_an_error(tmp_path: Path):
    file = save({"w": torch.arange(6.0)}, tmp_path / "m.bin", zipped=False)
    file.write_bytes(file.read_bytes().replace(struct.pack("<q", 6), struct.pack("<q", 5)))
    refusal(file, "has 5 elements, not 6")


def test_legacy_big_endian_file_is_refused(tmp_path: Path):
    file = save({"w": torch.arange(6.0)}, tmp_path / "m.bin", zipped=False)
    file.write_bytes(file.read_bytes().replace(b"endianq\x02\x88", b"endianq\x02\x89"))
    refusal(file, "not in little-endian order")


def test_zip_big_endian_file_is_refused(tmp_path: Path):
    file = save({"w": torch.arange(6.0)}, tmp_path / "m.bin")
    rezip(file, lambda name, content: b"big" if name == "byteorder" else content)
    refusal(file, "b'big' order")


def test_compressed_records_are_refused_by_name(tmp_path: Path):
    file = save({"w": torch.zeros(600)}, tmp_path / "m.bin")
    rezip(file, lambda name, content: content, zipfile.ZIP_DEFLATED)
    refusal(file, "'data.pkl' is compressed", "'data/0' is compressed")


def test_encrypted_records_are_refused_by_name(tmp_path: Path):
    file = save({"w": torch.zeros(6)}, tmp_path / "m.bin")
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0"))
    content[at + 8] |= 1  # general purpose flags of the central directory
    file.write_bytes(content)
    refusal(file, "'data/0' is encrypted")


def test_repeated_records_are_refused_by_name(tmp_path: Path):
    file = save({"w": torch.zeros(6)}, tmp_path / "m.bin")
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/data/0", b"x")
    refusal(file, "'data/0' is there twice")


def test_zip_that_is_no_torch_file_is_an_error(tmp_path: Path):
    file = save({"w": torch.zeros(6)}, tmp_path / "m.bin")
    rezip(file, lambda name, content: None if name == "data.pkl" else content)
    refusal(file, "without exactly one data.pkl")


def test_torchscript_archive_is_refused_by_name(tmp_path: Path):
    file = save({"w": torch.zeros(6)}, tmp_path / "m.bin")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("m/constants.pkl", b"x")
    refusal(file, "TorchScript")


def test_tar_is_refused_by_name(tmp_path: Path):
    with tarfile.open(tmp_path / "m.bin", "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    refusal(tmp_path / "m.bin", "tar archive")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html>", "HTML"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (b"junk" * 10, "not a file of torch.save"),
    ],
)
def test_file_that_is_something_else_is_named_as_such(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "m.bin").write_bytes(content)
    refusal(tmp_path / "m.bin", words)
