"""The GGUF reader against the gguf package's writer and dequantizers, and its refusals."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from easydel.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from easydel.checkpoint.blocks import can_decode
from easydel.errors import CheckpointError, UnsupportedModelError

PLAIN = ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"]
BLOCKS = [kind.name for kind in Type if kind.name not in PLAIN]
DECODED = [kind for kind in BLOCKS if can_decode(kind)]


def write(file: Path, tensors: dict[str, tuple[np.ndarray, Type | None]], **values: Any) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in values.items():
        add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array, float: writer.add_float32}
        add[type(value)](f"test.{key}", value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def refusal(file: Path, *parts: str, tensor: str | None = None) -> None:
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint([file])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 1
    assert peak < 20_000_000
    for part in (*parts, str(file)):
        assert part in str(caught.value)
    assert caught.value.file == str(file)
    assert caught.value.tensor == tensor


def random_blocks(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Raw bytes of any block type, NaN and Inf scales included."""
    elements, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    return np.random.default_rng(0).integers(0, 256, (*shape[:-1], shape[-1] // elements * size), dtype=np.uint8)


def decoded(raw: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, Type[kind])


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def test_the_usual_block_types_can_be_decoded():
    usual = {
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "IQ2_XXS",
    }
    assert usual <= set(DECODED)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(2 * 3 * 5, dtype=dtype).reshape(2, 3, 5)
        for dtype in (np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64)
    ],
    ids=lambda values: str(values.dtype),
)
def test_plain_tensors_are_read_only_views_in_numpy_order(tmp_path: Path, values: np.ndarray):
    file = write(tmp_path / "m.gguf", {"a": (values, None), "b": (values[0, 0], None)})
    checkpoint = open_checkpoint([file])
    assert checkpoint["a"].shape == (2, 3, 5)
    array = checkpoint["a"].read()
    assert array.dtype == values.dtype
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert bits(array) == bits(values)
    index = np.s_[1:, ::2, 3:0:-1]
    assert bits(checkpoint["a"].read(index)) == bits(values[index])
    assert bits(checkpoint["b"].read()) == bits(values[0, 0])


def test_bfloat16_reads_as_bfloat16(tmp_path: Path):
    values = np.arange(12).astype(ml_dtypes.bfloat16).reshape(3, 4)
    file = write(tmp_path / "m.gguf", {"a": (values.view(np.uint8), Type.BF16)})
    array = open_checkpoint([file])["a"].read()
    assert array.dtype == ml_dtypes.bfloat16
    assert bits(array) == bits(values)


SLICES = [(), np.s_[1:2,], np.s_[:, 3:5], np.s_[:, :, 5:300], np.s_[1:, ::2, 700:255:-3], np.s_[:, 6:1:-2, ::300]]


@pytest.mark.parametrize("kind", DECODED)
def test_dequantized_slices_equal_slices_of_the_whole(tmp_path: Path, kind: str):
    raw = random_blocks(kind, (2, 7, 768))
    checkpoint = open_checkpoint([write(tmp_path / "m.gguf", {"pad": (np.ones(3), None), "a": (raw, Type[kind])})])
    tensor, whole = checkpoint["a"], decoded(raw, kind)
    assert (tensor.encoding, tensor.dtype, tensor.shape) == (kind, np.float32, (2, 7, 768))
    assert tensor.nbytes == raw.nbytes
    for index in SLICES:
        assert bits(tensor.read(index)) == bits(whole[index])


@pytest.mark.parametrize("index", [np.s_[:, :, 5:5], np.s_[3:], np.s_[:, 2:2]], ids=str)
def test_empty_slices_of_blocks_are_empty(tmp_path: Path, index: Any):
    raw = random_blocks("Q4_1", (2, 7, 64))
    index = index if isinstance(index, tuple) else (index,)
    part = open_checkpoint([write(tmp_path / "m.gguf", {"a": (raw, Type.Q4_1)})])["a"].read(index)
    assert part.shape == np.empty((2, 7, 64))[index].shape


def test_tensor_larger_than_a_chunk_is_decoded_whole(tmp_path: Path):
    raw = random_blocks("Q8_0", (1100, 256))
    tensor = open_checkpoint([write(tmp_path / "m.gguf", {"a": (raw, Type.Q8_0)})])["a"]
    assert bits(tensor.read()) == bits(decoded(raw, "Q8_0"))
    assert bits(tensor.read(np.s_[900:, 32:])) == bits(decoded(raw, "Q8_0")[900:, 32:])


def test_rows_that_are_not_needed_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import gguf.quants

    raw = random_blocks("Q8_0", (64, 256))
    tensor = open_checkpoint([write(tmp_path / "m.gguf", {"a": (raw, Type.Q8_0)})])["a"]
    sizes: list[int] = []
    decode = gguf.quants.dequantize
    monkeypatch.setattr(gguf.quants, "dequantize", lambda raw, kind: sizes.append(raw.size) or decode(raw, kind))
    tensor.read(np.s_[8:12, 40:100])
    assert sum(sizes) == 4 * 3 * 34  # rows, blocks of each, bytes of a block


def test_metadata_is_decoded(tmp_path: Path):
    file = write(tmp_path / "m.gguf", {}, text="h\u00e9", count=7, ratio=0.5, words=["a", "", "b"], numbers=[1, -2])
    metadata = open_checkpoint([file]).metadata
    assert metadata["general.architecture"] == "llama"
    assert [metadata[f"test.{key}"] for key in ("text", "count", "ratio", "words")] == [
        "h\u00e9",
        7,
        0.5,
        ["a", "", "b"],
    ]
    assert metadata["test.numbers"].tolist() == [1, -2]


def test_alignment_of_the_file_is_honoured(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in "ab":
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(find_checkpoint(tmp_path))
    assert checkpoint["b"].offset % 256 == 0
    assert checkpoint["b"].read().tolist() == [ord("b")] * 3


def split(directory: Path) -> Checkpoint:
    writer = gguf.GGUFWriter(directory / "m.gguf", "llama", split_max_tensors=1)
    writer.add_string("test.key", "value")
    for name in "abc":
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    writer.write_header_to_file(directory / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_checkpoint(find_checkpoint(directory))


def test_parts_of_a_split_file_make_one_checkpoint(tmp_path: Path):
    checkpoint = split(tmp_path)
    assert {name: tensor.read()[0] for name, tensor in checkpoint.items()} == {name: ord(name) for name in "abc"}
    assert checkpoint.metadata["test.key"] == "value"
    assert len(checkpoint.files) == 3


def test_one_part_alone_is_an_error(tmp_path: Path):
    part = split(tmp_path).files[1]
    refusal(part, "one of 3 parts", "1 of 3 tensors")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def start(tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def record(name: str = "w", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def one(**changes: Any) -> bytes:
    """A file with one tensor of four floats, or as changed."""
    head = start(1) + record(**changes)
    return head + bytes(-len(head) % 32) + bytes(16)


def test_handwritten_file_of_these_tests_is_valid(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(one())
    assert open_checkpoint([tmp_path / "m.gguf"])["w"].read().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GG", "is not a GGUF file"),
        (b"ABCD" + bytes(60), "begins with b'ABCD'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"GGUF\3", "truncated within its version: 3 bytes"),
        (start(version=1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (start()[:-1], "1 bytes are missing"),
        (start(pairs=2**60), "its metadata: 1152921504606846976 entries cannot fit"),
        (start(tensors=2**60), "1152921504606846976 tensors cannot fit"),
        (start(tensors=2**60) + bytes(1000), "tensors cannot fit"),
        (start(pairs=1) + struct.pack("<Q", 2**63) + bytes(20), "truncated within metadata key 0"),
        (start(pairs=1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20), "metadata key 0 is not UTF-8"),
        (start(pairs=1) + text("k") + struct.pack("<I", 13) + bytes(9), "'k' has the unknown type 13"),
        (start(pairs=1) + text("k") + struct.pack("<IQ", 8, 99), "truncated within the value of 'k': 99 bytes"),
        (start(pairs=1) + text("k") + struct.pack("<IIQ", 9, 4, 2**60), "'k': 1152921504606846976 entries cannot fit"),
        (start(pairs=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**60), "'k': 1152921504606846976 entries cannot fit"),
        (
            start(pairs=1) + text("k") + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 2**50),
            "within the value of 'k'",
        ),
        (start(pairs=1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20), "list of lists"),
        (start(pairs=1) + text("k") + struct.pack("<IIQ", 9, 77, 1) + bytes(20), "unknown type 77"),
        (start(pairs=2) + (text("k") + struct.pack("<II", 4, 1)) * 2, "'k' twice"),
        (start(pairs=1) + text("general.alignment") + struct.pack("<II", 4, 0), "general.alignment is 0"),
        (start(pairs=1) + text("general.alignment") + struct.pack("<II", 4, 24), "general.alignment is 24"),
        (start(pairs=1) + text("general.alignment") + struct.pack("<I", 8) + text("x"), "general.alignment is x"),
        (start(tensors=1) + struct.pack("<Q", 2**40) + bytes(30), "truncated within the name of tensor 0"),
        (start(tensors=2) + record(), "2 tensors cannot fit"),
        (start(tensors=1) + record("longer", (4, 4))[:-3], "the record of tensor 'longer': 3 bytes"),
    ],
)
def test_broken_header_is_a_quick_error_with_the_file(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "m.gguf").write_bytes(content)
    refusal(tmp_path / "m.gguf", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (one(dims=(1, 1, 1, 1, 1)), "5 dimensions"),
        (start(1) + text("w") + struct.pack("<I", 2**32 - 1) + bytes(20), "4294967295 dimensions"),
        (one(kind=99), "type 99 is unknown"),
        (one(kind=Type.Q4_0, dims=(33,)), "not whole Q4_0 blocks of 32"),
        (one(kind=Type.Q4_0, dims=()), "not whole Q4_0 blocks"),
        (one(dims=(2**40, 2**40)), "overflows"),
        (one(dims=(2**63,), kind=Type.Q4_0), "overflows"),
        (one(dims=(2**40,)), "truncated: 4398046511088 of its 4398046511104 bytes"),
        (one(offset=5), "not a multiple of the alignment 32"),
        (one(offset=2**63), "truncated"),
        (one()[:-3], "truncated: 3 of its 16 bytes"),
        (start(2) + record() * 2 + bytes(32), "in the file twice"),
        (start(2) + record("v") + record() + bytes(64), "overlaps tensor 'v'"),
    ],
)
def test_broken_tensor_is_a_quick_error_with_file_and_tensor(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "m.gguf").write_bytes(content)
    refusal(tmp_path / "m.gguf", words, tensor="w")


def test_a_type_that_cannot_be_decoded_is_unsupported_not_damage(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(one(kind=Type.Q8_K, dims=(256,)))
    with pytest.raises(UnsupportedModelError, match=r"cannot decode: Q8_K \(1 tensors\)") as caught:
        open_checkpoint([tmp_path / "m.gguf"])
    assert "damaged" not in str(caught.value)


def test_all_broken_tensors_are_listed(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(start(2) + record("v", kind=99) + record("w", kind=98) + bytes(64))
    refusal(tmp_path / "m.gguf", "2 problems", "'v'", "type 99", "'w'", "type 98", tensor="v")


def test_changed_bytes_never_raise_anything_else(tmp_path: Path):
    raw = random_blocks("Q4_1", (2, 64))
    file = write(tmp_path / "m.gguf", {"a": (raw, Type.Q4_1), "b": (np.ones(3), None)}, words=["x", "y"], count=3)
    content = file.read_bytes()
    random, loaded = np.random.default_rng(0), 0
    last = max(tensor.offset + tensor.nbytes for tensor in open_checkpoint([file]).values())
    for size in range(0, last, 7):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint([file])
    for _ in range(500):
        changed = bytearray(content)
        for position in random.integers(0, len(content) - raw.nbytes, 3):
            changed[position] = random.integers(0, 256)
        file.write_bytes(changed)
        try:
            checkpoint = open_checkpoint([file])
        except (CheckpointError, UnsupportedModelError):
            continue
        for tensor in checkpoint.values():
            tensor.read()
        loaded += 1
    assert 0 < loaded < 500
