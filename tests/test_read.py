"""Rows of a file dealt out to the devices that hold columns of them."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import easydel.weights.read as reading
from easydel.checkpoint import open_checkpoint
from easydel.errors import CheckpointError
from easydel.sharding import make_mesh
from easydel.weights.execute import execute
from easydel.weights.expressions import Expression, Reshape, Rows, Source, Stack
from easydel.weights.plan import Plan

COLUMNS = 2048  # bfloat16, over two devices: pieces of 2 KiB
DEALT = {"yes": True, "no": False}


@pytest.fixture(params=DEALT.values(), ids=DEALT)
def dealt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the system calls that deal rows out; with "no" there is none, as on systems that lack it."""
    calls, system = [], reading.system_preadv()

    def preadv(handle: int, pieces: int, count: int, offset: int) -> int:
        assert system is not None
        calls.append(count)
        return system(handle, pieces, count, offset)

    monkeypatch.setattr(reading, "system_preadv", lambda: preadv if request.param else None)
    monkeypatch.setattr(reading, "most_pieces", lambda: 7)  # several calls, and one left over
    return calls


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    arrays = {name: random.normal(size=(12, COLUMNS)) for name in ("a", "b", "c")}
    arrays |= {name: random.normal(size=(3 * COLUMNS,)) for name in ("v", "w")}
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}


def plan_of(folder: Path, expression: Expression, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> Plan:
    save_file(arrays, folder / "model.safetensors")
    return Plan({"p": expression}, {"p": shape}, open_checkpoint([folder / "model.safetensors"]), ())


def loaded(plan: Plan, dtype: np.dtype, *, vectors: bool = False) -> tuple[np.ndarray, int]:
    """The parameter, split over columns and (unless these are stacked `vectors`) rows, and the bytes that were read."""
    mesh = make_mesh((1, 2, 2, 2), ("dp", "fsdp", "tp", "sp"), None)
    spec = jax.sharding.PartitionSpec(*[None] * (len(plan.shapes["p"]) - 2), None if vectors else "tp", ("fsdp",))
    params, report = execute(plan, {"p": jax.sharding.NamedSharding(mesh, spec)}, {"p": dtype})
    return np.asarray(params["p"]), report.bytes_read


ORDER = np.r_[8:12, 0:4]
FORMS = {
    "as it is": (Source("a"), lambda x: x["a"]),
    "some rows in another order": (Rows(Source("a"), ORDER, 12), lambda x: x["a"][ORDER]),
    "experts in one matrix": (
        Reshape(Source("a"), (12, COLUMNS), (3, 4, COLUMNS)),
        lambda x: x["a"].reshape(3, 4, COLUMNS),
    ),
    "stacked": (Stack((Source("c"), Source("a"), Source("b"))), lambda x: np.stack([x["c"], x["a"], x["b"]])),
}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["same dtype", "cast"])
@pytest.mark.parametrize("form", FORMS)
def test_each_device_gets_its_columns_and_the_rows_are_read_once(
    tmp_path: Path, form: str, dtype: type, dealt: list[int], request: pytest.FixtureRequest
):
    arrays = tensors()
    expression, expected = FORMS[form]
    wanted = expected(arrays)
    got, read = loaded(plan_of(tmp_path, expression, wanted.shape, arrays), np.dtype(dtype))
    np.testing.assert_array_equal(got, wanted.astype(dtype))
    assert read == wanted.nbytes
    assert bool(dealt) == (dtype is ml_dtypes.bfloat16 and request.node.callspec.params["dealt"])


FIRST, SECOND = np.arange(2 * COLUMNS), np.arange(COLUMNS, 3 * COLUMNS)
VECTORS = {
    "whole": (Stack((Source("w"), Source("v"))), lambda x: np.stack([x["w"], x["v"]])),
    "the first part of each": (
        Stack(tuple(Rows(Source(name), FIRST, 3 * COLUMNS, -1) for name in "vw")),
        lambda x: np.stack([x["v"][FIRST], x["w"][FIRST]]),
    ),
    "the last part of each": (
        Stack(tuple(Rows(Source(name), SECOND, 3 * COLUMNS, -1) for name in "vw")),
        lambda x: np.stack([x["v"][SECOND], x["w"][SECOND]]),
    ),
}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["same dtype", "cast"])
@pytest.mark.parametrize("form", VECTORS)
def test_stacked_vectors_can_be_split(tmp_path: Path, form: str, dtype: type, dealt: list[int]):
    arrays = tensors()
    expression, expected = VECTORS[form]
    wanted = expected(arrays)
    got, read = loaded(plan_of(tmp_path, expression, wanted.shape, arrays), np.dtype(dtype), vectors=True)
    np.testing.assert_array_equal(got, wanted.astype(dtype))
    assert read == wanted.nbytes


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["same dtype", "cast"])
def test_columns_of_rows_that_the_file_cuts_otherwise_are_right(tmp_path: Path, dtype: type):
    arrays = {"a": tensors()["a"]}
    wanted = arrays["a"].reshape(6, 2 * COLUMNS)
    plan = plan_of(tmp_path, Reshape(Source("a"), (12, COLUMNS), wanted.shape), wanted.shape, arrays)
    got, _ = loaded(plan, np.dtype(dtype))
    np.testing.assert_array_equal(got, wanted.astype(dtype))


def test_a_file_that_shrank_is_an_error(tmp_path: Path, dealt: list[int]):
    plan = plan_of(tmp_path, Source("a"), (12, COLUMNS), {"a": tensors()["a"]})
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-3000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*'a'.*shrank"):
        loaded(plan, np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("column", [0, COLUMNS - 1])
def test_what_the_cast_makes_infinite_in_any_column_is_told(tmp_path: Path, column: int):
    arrays = {"a": np.ones((12, COLUMNS), np.float32)}
    arrays["a"][11, column] = 3.4e38
    plan = plan_of(tmp_path, Source("a"), (12, COLUMNS), arrays)
    with pytest.raises(CheckpointError, match="'p': has finite values that do not fit into bfloat16"):
        loaded(plan, np.dtype(ml_dtypes.bfloat16))
    arrays["a"][11, column] = np.inf
    plan = plan_of(tmp_path, Source("a"), (12, COLUMNS), arrays)
    for dtype in (ml_dtypes.bfloat16, np.float32):
        with pytest.raises(CheckpointError, match=r"'a'.*NaN or Inf"):
            loaded(plan, np.dtype(dtype))


@pytest.mark.parametrize("column", [0, COLUMNS - 1])
def test_nan_among_the_columns_of_any_device_is_named(tmp_path: Path, column: int, dealt: list[int]):
    arrays = {"a": tensors()["a"]}
    arrays["a"][11, column] = np.nan
    plan = plan_of(tmp_path, Source("a"), (12, COLUMNS), arrays)
    with pytest.raises(CheckpointError, match=r"'a'.*NaN or Inf"):
        loaded(plan, np.dtype(ml_dtypes.bfloat16))
