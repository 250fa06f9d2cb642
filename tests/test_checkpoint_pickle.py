"""Pickles that torch.save would not write are refused by name, and nothing in them is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_files import BOTH, refusal, save

from easydel.checkpoint import open_checkpoint


def with_pickle(file: Path, pickled: bytes) -> Path:
    """A file of torch.save in which the pickle is replaced; it has one storage "0" of the six floats 0 to 5."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", b"little")
        archive.writestr("m/data/0", np.arange(6, dtype=np.float32).tobytes())
        archive.writestr("m/version", b"3\n")
    return file


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL_PATH"],))


@BOTH
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), "mkdir"),
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (np.float64(1.0), "numpy"),
        (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        ({1, 2}, "set"),
        (torch.device("cpu"), "torch.device"),
    ],
    ids=["mkdir", "namespace", "module", "numpy", "sparse", "set", "device"],
)
def test_other_globals_are_refused_by_name_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, name: str, zipped: bool
):
    monkeypatch.setenv("EVIL_PATH", str(tmp_path / "evil"))
    file = save({"w": torch.ones(2), "x": value}, tmp_path / "m.bin", zipped)
    refusal(file, name, "nothing of it was executed")
    assert not (tmp_path / "evil").exists()


def test_plain_pickle_is_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVIL_PATH", str(tmp_path / "evil"))
    file = tmp_path / "m.bin"
    file.write_bytes(pickle.dumps(Evil()))
    refusal(file, "mkdir")
    file.write_bytes(pickle.dumps({"w": 1}))
    refusal(file, "not one of torch.save")
    assert not (tmp_path / "evil").exists()


def tensor_pickle(storage: bytes, offset: int, shape: bytes, strides: bytes, flags: bytes = b"") -> bytes:
    """{"w": _rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict(), *flags)}"""
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"J"
        + struct.pack("<i", offset)
        + shape
        + strides
        + b"\x89}"
        + flags
        + b"tRs."
    )


def storage_pickle(key: bytes = b"0", elements: bytes = b"K\x06", kind: bytes = b"FloatStorage") -> bytes:
    name = struct.pack("<I", len(key)) + key
    return b"(X\x07\x00\x00\x00storagectorch\n%s\nX%sX\x03\x00\x00\x00cpu%stQ" % (kind, name, elements)


ROW = b"K\x06\x85"  # (6,)
ONE = b"K\x01\x85"  # (1,)
HUGE = b"\x8a\x0a" + (2**70).to_bytes(10, "little") + b"\x85"


def test_handwritten_pickle_of_these_tests_is_valid(tmp_path: Path):
    file = with_pickle(tmp_path / "m.bin", tensor_pickle(storage_pickle(), 0, ROW, ONE))
    assert open_checkpoint([file])["w"].read().tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.load(file)["w"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (tensor_pickle(storage_pickle(), 1, ROW, ONE), "reaches to byte 28 of a storage of 24 bytes"),
        (tensor_pickle(storage_pickle(), 0, ROW, b"K\x02\x85"), "reaches to byte 44"),
        (tensor_pickle(storage_pickle(), -1, ROW, ONE), "non-negative"),
        (tensor_pickle(storage_pickle(), 0, ROW, b"J\xff\xff\xff\xff\x85"), "non-negative"),
        (tensor_pickle(storage_pickle(), 0, ROW, b")"), "for each dimension"),
        (tensor_pickle(storage_pickle(), 0, b"J\xff\xff\xff\xff\x85", ONE), "list of non-negative integers"),
        (tensor_pickle(storage_pickle(), 0, HUGE, b"K\x00\x85"), "overflows"),
        (tensor_pickle(storage_pickle(key=b"9"), 0, ROW, ONE), "storage '9' is missing"),
        (tensor_pickle(storage_pickle(elements=b"K\x07"), 0, ROW, ONE), "truncated: 4 bytes are missing"),
    ],
)
def test_view_that_does_not_fit_its_storage_is_an_error_with_the_tensor(tmp_path: Path, pickled: bytes, words: str):
    refusal(with_pickle(tmp_path / "m.bin", pickled), words, tensor="w")


def test_stride_of_a_dimension_of_one_may_be_anything(tmp_path: Path):
    file = with_pickle(tmp_path / "m.bin", tensor_pickle(storage_pickle(), 2, ONE, HUGE))
    assert open_checkpoint([file])["w"].read().tolist() == [2]


PROTO = b"\x80\x02"


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (b"", "damaged at byte 0"),
        (PROTO + b"}", "the pickle ends"),
        (PROTO + b".", "damaged"),
        (PROTO + b"}}.", "left over"),
        (PROTO + b"}.junk", "4 bytes follow the pickle"),
        (PROTO + b"t.", "damaged"),
        (PROTO + b"h\x07.", "damaged"),
        (PROTO + b"}K\x01a.", "no list"),
        (PROTO + b"]K\x01K\x01s.", "no dict"),
        (PROTO + b"}(K\x01u.", "no dict"),
        (PROTO + b"}))s.", "dict key of type tuple"),
        (PROTO + b"K\x01)R.", "no constructor"),
        (PROTO + b"ctorch\nFloatStorage\n)R.", "no constructor"),
        (PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged"),
        (PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR.", "without a storage"),
        (PROTO + b"K\x01Q.", "no storage"),
        (PROTO + b"ccollections", "damaged"),
        (PROTO + b"K\x01K\x01\x93.", "not a string"),
        (PROTO + b"ctorch._utils\n_rebuild_parameter\n(K\x01K\x01K\x01tR.", "no tensor"),
        (PROTO + b"ccollections\nOrderedDict\n(K\x01tR.", "pairs"),
        (PROTO + b"ctorch\nSize\n(K\x01tR.", "torch.Size"),
        (PROTO + b"K\x01}b.", "no dict"),
        (PROTO + b"\x8d" + b"\xff" * 8 + b".", "damaged"),
        (PROTO + b"\x8e" + struct.pack("<Q", 2**60) + b".", "damaged"),
        (PROTO + b"X\x02\x00\x00\x00\xff\xfe.", "damaged"),
        (PROTO + b"T\xff\xff\xff\xff.", "damaged"),
        (PROTO + b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", "'os.system'"),
        (PROTO + b"\x8c\x08builtins\x8c\x04eval\x93.", "'builtins.eval'"),
        (PROTO + b"(ios\nsystem\n.", "opcode 0x69"),
        (PROTO + b")\x81.", "opcode 0x81"),
        (PROTO + b"(o.", "opcode 0x6f"),
        (PROTO + b"\x82\x01.", "opcode 0x82"),
        (PROTO + b"I01\n.", "opcode 0x49"),
        (tensor_pickle(storage_pickle(), 0, ROW, ONE, flags=b"}X\x04\x00\x00\x00conj\x88s"), "conjugated"),
        (tensor_pickle(storage_pickle(elements=b"N"), 0, ROW, ONE), "without type, key or size"),
        (tensor_pickle(storage_pickle(kind=b"UntypedStorage"), 0, ROW, ONE), "without a storage or dtype"),
    ],
)
def test_broken_pickle_is_an_error_with_the_file(tmp_path: Path, pickled: bytes, words: str):
    refusal(with_pickle(tmp_path / "m.bin", pickled), words)


def test_hostile_pickle_takes_neither_time_nor_memory(tmp_path: Path):
    doubling = PROTO + b")" + b"q\x00h\x00\x86" * 200 + b"K\x01r\xff\xff\xff\x7f\x86\x85."
    file = with_pickle(tmp_path / "m.bin", doubling)
    tracemalloc.start()
    start = time.perf_counter()
    refusal(file, "holds a tuple")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 1
    assert peak < 5_000_000
