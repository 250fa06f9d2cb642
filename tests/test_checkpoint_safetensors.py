"""The safetensors reader against the reference writer, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from easydel.checkpoint import find_checkpoint, open_checkpoint
from easydel.checkpoint.safetensors import DTYPES, NAMES
from easydel.errors import CheckpointError


def write(file: Path, header: object, data: bytes = b"", pad: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode() + b" " * pad
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def entry(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(file: Path, *parts: str, tensor: str | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint([file])
    for part in (*parts, str(file)):
        assert part in str(caught.value)
    assert caught.value.file == str(file)
    assert caught.value.tensor == tensor
    return caught.value


TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_reads_as_torch_wrote_it(tmp_path: Path, dtype: torch.dtype):
    raw = torch.randint(0, 2, (5, 7, 16), dtype=torch.uint8)
    width = torch.empty((), dtype=dtype).element_size()
    save_torch({"x": raw.view(dtype), "y": torch.ones(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint([tmp_path / "model.safetensors"])
    array = checkpoint["x"].read()
    assert array.shape == (5, 7, 16 // width)
    assert array.dtype == checkpoint["x"].dtype
    assert array.tobytes() == raw.numpy().tobytes()
    assert checkpoint.total_bytes == raw.numel() + 3


def test_dtype_names_are_a_bijection():
    assert len(NAMES) == len(DTYPES)


def test_reads_are_read_only_views_of_one_mapping(tmp_path: Path):
    values = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.arange(5, dtype=np.int64)}
    save_file(values, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(find_checkpoint(tmp_path))
    a, b = checkpoint["a"].read(), checkpoint["b"].read()
    assert not a.flags.writeable
    assert not a.flags.owndata
    distance = a.__array_interface__["data"][0] - b.__array_interface__["data"][0]
    assert distance == checkpoint["a"].offset - checkpoint["b"].offset
    np.testing.assert_array_equal(a, values["a"])
    np.testing.assert_array_equal(b, values["b"])


@pytest.mark.parametrize("index", [np.s_[1:3], np.s_[:, 2:9:3], np.s_[::-2, 1:0:-1], np.s_[4:4]], ids=str)
def test_sub_slice_equals_slice_of_full_read(tmp_path: Path, index: slice | tuple[slice, ...]):
    values = np.arange(6 * 11 * 2).astype(ml_dtypes.bfloat16).reshape(6, 11, 2)
    save_file({"x": values}, tmp_path / "model.safetensors")
    index = index if isinstance(index, tuple) else (index,)
    part = open_checkpoint([tmp_path / "model.safetensors"])["x"].read(index)
    assert part.tobytes() == values[index].tobytes()


def test_scalars_and_empty_tensors_read(tmp_path: Path):
    save_file({"s": np.array(3.5, np.float32), "e": np.empty((0, 4), np.int32)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint([tmp_path / "m.safetensors"])
    scalar = checkpoint["s"].read()
    assert scalar == 3.5
    assert isinstance(scalar, np.ndarray)
    assert not scalar.flags.owndata
    assert checkpoint["e"].read().shape == (0, 4)


def test_metadata_is_kept(tmp_path: Path):
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint([tmp_path / "m.safetensors"])
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.format == "safetensors"


def test_replaced_file_is_not_read_through_the_old_mapping(tmp_path: Path):
    file = tmp_path / "m.safetensors"
    save_file({"x": np.ones(4, np.float32)}, file)
    tensor = open_checkpoint([file])["x"]
    kept = tensor.read()
    save_file({"x": np.zeros(4, np.float32)}, tmp_path / "other")
    (tmp_path / "other").rename(file)
    assert kept.sum() == 4
    assert tensor.read().sum() == 0


def test_file_that_shrank_after_opening_is_named(tmp_path: Path):
    file = write(tmp_path / "m.safetensors", {"x": entry()}, bytes(24))
    tensor = open_checkpoint([file])["x"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"'x'.*shrank"):
        tensor.read()


def test_truncated_file_names_the_missing_bytes(tmp_path: Path):
    file = write(tmp_path / "m.safetensors", {"x": entry()}, bytes(19))
    refusal(file, "5 bytes are missing", tensor="x")


def test_truncated_header_names_the_missing_bytes(tmp_path: Path):
    file = tmp_path / "m.safetensors"
    file.write_bytes((100).to_bytes(8, "little") + b"{" * 33)
    refusal(file, "67 bytes of its header")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"abc", "truncated: 3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "HTML page"),
        (b"<HTML><body>404</body></HTML>", "HTML page"),
        (b'{"error":"Repository not found"}', "error message of a server"),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "GGUF"),
        (b"PK\x03\x04" + bytes(30), "zip"),
        (b"\xff" * 40, "over the limit"),
    ],
    ids=["empty", "short", "lfs", "doctype", "html", "json", "gguf", "zip", "size"],
)
def test_file_that_is_something_else_is_named_as_such(tmp_path: Path, content: bytes, words: str):
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    refusal(file, words)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{nope", "not valid JSON"),
        (b'{"a\xff": 1}', "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "not a JSON object"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        ({"__metadata__": []}, "__metadata__"),
    ],
    ids=["syntax", "utf8", "depth", "digits", "list", "metadata", "metadata-list"],
)
def test_broken_header_is_an_error_with_the_file(tmp_path: Path, header: object, words: str):
    refusal(write(tmp_path / "m.safetensors", header), words)


def test_duplicate_keys_are_an_error(tmp_path: Path):
    text = b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2)
    refusal(write(tmp_path / "m.safetensors", text, bytes(24)), "twice", tensor="x")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (7, "exactly dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [2]}, "exactly dtype"),
        ({**entry(), "extra": 1}, "exactly dtype"),
        (entry(dtype="F4"), "dtype F4 is not supported"),
        (entry(dtype=["F32"]), "not supported"),
        (entry(shape=7), "list of non-negative integers"),
        (entry(shape=[2, -3]), "list of non-negative integers"),
        (entry(shape=[True, 6]), "list of non-negative integers"),
        (entry(shape=[2.0, 3]), "list of non-negative integers"),
        (entry(shape=[1] * 65), "65 dimensions"),
        (entry(shape=[2**32, 2**32]), "overflows"),
        (entry(shape=[2**62, 0, 2**62], offsets=[0, 0]), "overflows"),
        (entry(shape=[2, 4]), "takes 32 bytes"),
        (entry(offsets=[0, 2**70]), "takes 24 bytes"),
        (entry(offsets=[24, 0]), "do not make a range"),
        (entry(offsets=[-24, 0]), "do not make a range"),
        (entry(offsets=[0]), "not a pair"),
        (entry(offsets=[0.0, 24]), "not a pair"),
        (entry(offsets=[8, 32]), "hole"),
    ],
)
def test_broken_entry_is_an_error_with_file_and_tensor(tmp_path: Path, broken: object, words: str):
    refusal(write(tmp_path / "m.safetensors", {"layer.x": broken}, bytes(24)), words, tensor="layer.x")


def test_overlap_is_an_error(tmp_path: Path):
    header = {"a": entry(), "b": entry(offsets=(16, 40))}
    refusal(write(tmp_path / "m.safetensors", header, bytes(40)), "overlap", tensor="b")


def test_trailing_bytes_are_an_error(tmp_path: Path):
    refusal(write(tmp_path / "m.safetensors", {"a": entry()}, bytes(29)), "5 bytes follow the last tensor")


def test_all_broken_entries_are_listed(tmp_path: Path):
    file = write(tmp_path / "m.safetensors", {"a": entry(dtype="F5"), "b": entry(shape=[1])}, bytes(24))
    refusal(file, "2 problems", "'a'", "F5", "'b'", "takes 4 bytes", tensor="a")


def sharded(directory: Path, weight_map: dict[str, object], shards: dict[str, dict[str, np.ndarray]]) -> Path:
    for name, tensors in shards.items():
        save_file(tensors, directory / name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


ONE, TWO = {"a": np.ones(2, np.float32)}, {"b": np.ones(3, np.float32)}


def test_index_with_shards_reads_all_tensors(tmp_path: Path):
    sharded(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": ONE, "2.safetensors": TWO})
    files = find_checkpoint(tmp_path)
    assert [file.name for file in files] == ["model.safetensors.index.json", "1.safetensors", "2.safetensors"]
    checkpoint = open_checkpoint(files)
    assert set(checkpoint) == {"a", "b"}
    assert [file.name for file in checkpoint.files] == ["1.safetensors", "2.safetensors"]
    assert set(open_checkpoint(files[:1])) == {"a", "b"}


def test_tensor_that_the_index_does_not_mention_is_kept(tmp_path: Path):
    sharded(tmp_path, {"a": "1.safetensors"}, {"1.safetensors": ONE | TWO})
    assert set(open_checkpoint(find_checkpoint(tmp_path))) == {"a", "b"}


def test_every_tensor_missing_from_its_shard_is_listed(tmp_path: Path):
    index = sharded(
        tmp_path,
        {"a": "2.safetensors", "b": "2.safetensors", "c": "1.safetensors"},
        {"1.safetensors": ONE, "2.safetensors": TWO},
    )
    refusal(index, "'a'", "it is in 1.safetensors", "'c'", "no shard has it", tensor="a")


def test_a_shard_of_that_name_in_another_folder_is_not_the_shard(tmp_path: Path):
    (tmp_path / "other").mkdir()
    index = sharded(tmp_path, {"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": ONE})
    save_file(TWO, tmp_path / "other" / "1.safetensors")
    with pytest.raises(CheckpointError, match=r"'b': should be in 1\.safetensors, but it is in .*/other/1") as caught:
        open_checkpoint([index, tmp_path / "other" / "1.safetensors"])
    assert caught.value.file == str(index)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "d/x.safetensors", "..", "c:x", "a\\b", "", 5, ["x"]]
)
def test_index_entry_that_is_no_plain_file_name_is_an_error(tmp_path: Path, name: object):
    index = sharded(tmp_path, {"a": name}, {})
    with pytest.raises(CheckpointError, match="not a plain file name") as caught:
        find_checkpoint(tmp_path)
    assert caught.value.file == str(index)


def test_all_missing_shards_are_listed(tmp_path: Path):
    sharded(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}, {"2.safetensors": TWO})
    with pytest.raises(CheckpointError, match=r"(?s)1\.safetensors.*3\.safetensors"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "{", "[" * 50_000, "\ud800"]
)
def test_broken_index_is_an_error_with_the_file(tmp_path: Path, content: str):
    file = tmp_path / "model.safetensors.index.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.file == str(file)


def test_tensor_in_two_shards_is_an_error(tmp_path: Path):
    sharded(tmp_path, {"a": "1.safetensors"}, {"1.safetensors": ONE, "2.safetensors": ONE})
    with pytest.raises(CheckpointError, match=r"'a'.*also in") as caught:
        open_checkpoint([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert caught.value.tensor == "a"


def test_all_broken_shards_are_listed(tmp_path: Path):
    files = [write(tmp_path / f"{name}.safetensors", {name: entry()}, bytes(3)) for name in "ab"]
    with pytest.raises(CheckpointError, match=r"(?s)2 broken files.*a\.safetensors.*b\.safetensors"):
        open_checkpoint(files)
