"""The loading engine: the bytes it reads, the places it puts them, and the memory it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from cases import SIZES, Case
from hypothesis import given, settings, strategies as st
from parity import make_reference
from safetensors.numpy import save_file

from easydel import AutoEasyDeLModelForCausalLM, CheckpointError
from easydel.checkpoint import open_checkpoint
from easydel.tree import flatten
from easydel.weights.execute import execute
from easydel.weights.expressions import Expression, Reshape, Rows, Source, Stack, Transpose, assemble, runs
from easydel.weights.fill import Filler, mappable
from easydel.weights.plan import Plan

CASE = Case("llama-load", "llama", SIZES | {"num_hidden_layers": 2})
FLOATS = [np.dtype(name) for name in ("float32", "float16", "bfloat16", "float64")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    make_reference(CASE, path)
    return path


def plan_of(tmp_path: Path, expression: Expression, arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> Plan:
    save_file(arrays, tmp_path / "model.safetensors")
    return Plan({"p": expression}, {"p": shape}, open_checkpoint([tmp_path / "model.safetensors"]), ())


def filled(plan: Plan, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
    out = np.full(tuple(part.stop - part.start for part in index), 7, dtype)
    filler = Filler(plan)
    filler.fill("p", index, out)
    filler.reader.close()
    return out


# name -> (expression, the same in numpy); tensors "a" and "b" are [12, 10]
FORMS = {
    "as it is": (Source("a"), lambda a, b: a),
    "transposed": (Transpose(Source("a")), lambda a, b: a.T),
    "rows": (Rows(Source("a"), np.r_[3:7, 0:2, 11], 12), lambda a, b: a[np.r_[3:7, 0:2, 11]]),
    "rows of a transpose": (
        Rows(Transpose(Source("a")), np.r_[1, 8:10, 0], 10),
        lambda a, b: a.T[np.r_[1, 8:10, 0]],
    ),
    "every other row of the transpose": (Rows(Transpose(Source("a")), np.arange(0, 10, 2), 10), lambda a, b: a.T[::2]),
    "every third column": (Rows(Source("a"), np.arange(0, 10, 3), 10, -1), lambda a, b: a[:, ::3]),
    "experts in one matrix": (Reshape(Source("a"), (12, 10), (3, 4, 10)), lambda a, b: a.reshape(3, 4, 10)),
    "transposed experts in one matrix": (
        Transpose(Reshape(Source("a"), (12, 10), (3, 4, 10))),
        lambda a, b: a.reshape(3, 4, 10).swapaxes(1, 2),
    ),
    "a vector in more dimensions": (Reshape(Source("a"), (12, 10), (1, 120, 1)), lambda a, b: a.reshape(1, 120, 1)),
    "rows cut otherwise": (Reshape(Source("a"), (12, 10), (8, 5, 3)), lambda a, b: a.reshape(8, 5, 3)),
    "rows of a transpose in another shape": (
        Reshape(Rows(Transpose(Source("a")), np.r_[1, 8:10, 0], 10), (4, 12), (2, 24)),
        lambda a, b: a.T[np.r_[1, 8:10, 0]].reshape(2, 24),
    ),
    "stack of other shapes": (
        Stack(tuple(Reshape(Source(name), (12, 10), (1, 1, 120)) for name in "ab")),
        lambda a, b: np.stack([a, b]).reshape(2, 1, 1, 120),
    ),
    "stack": (Stack((Source("b"), Source("a"))), lambda a, b: np.stack([b, a])),
    "stack of rows": (
        Stack(tuple(Rows(Source(name), np.arange(1, 12, 2), 12) for name in "ab")),
        lambda a, b: np.stack([a[1::2], b[1::2]]),
    ),
}


@pytest.mark.parametrize("stored", FLOATS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_slice_in_any_dtype_equals_numpy(form: str, stored: np.dtype, data: Any, tmp_path_factory: Any):
    expression, whole = FORMS[form]
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((12, 10)).astype(stored) for name in "ab"}
    expected = whole(arrays["a"], arrays["b"])
    plan = plan_of(tmp_path_factory.mktemp("form"), expression, arrays, expected.shape)
    index = []
    for dim in expected.shape:
        start = data.draw(st.integers(0, dim - 1))
        index.append(slice(start, data.draw(st.integers(start + 1, dim))))
    wanted = data.draw(st.sampled_from(FLOATS))
    np.testing.assert_array_equal(filled(plan, tuple(index), wanted), expected[tuple(index)].astype(wanted))


@pytest.mark.parametrize("form", FORMS)
def test_assembling_the_pieces_of_a_parameter_inverts_reading_it(form: str):
    expression, whole = FORMS[form]
    arrays = {name: np.arange(120.0).reshape(12, 10) + 1000 * (name == "b") for name in "ab"}
    values = whole(arrays["a"], arrays["b"])
    pieces, read = list(expression.pieces(values)), 0
    for name, shape in expression.shapes(values.shape).items():
        assert shape == (12, 10)
        back = assemble(shape, values.dtype, [piece for piece in pieces if piece[0] == name])
        known = np.zeros(shape, bool)
        for _, where, _ in (piece for piece in pieces if piece[0] == name):
            known[where] = True
        np.testing.assert_array_equal(back[known], arrays[name][known])
        read += known.sum()
    assert read == values.size


SHAPES = [(2, 3, 4, 5), (24, 5), (120,), (1, 120, 1), (6, 20), (4, 30), (8, 15), (3, 1, 40), (2, 2, 2, 15), (1, 1, 120)]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), theirs=st.sampled_from(SHAPES), ours=st.sampled_from(SHAPES))
def test_a_slice_of_another_shape_is_made_of_slices(data: Any, theirs: tuple[int, ...], ours: tuple[int, ...]):
    values = np.arange(120).reshape(theirs)
    expected, index = values.reshape(ours), []
    for dim in ours:
        start = data.draw(st.integers(0, dim))
        index.append(slice(start, data.draw(st.integers(start, dim)), data.draw(st.sampled_from([None, 2]))))
    wanted = expected[tuple(index)]
    out = np.full((*wanted.shape, 2), -1)[..., 0]  # with gaps, as a device's columns may be
    for part in Reshape(Source("a"), theirs, ours).copies(tuple(index), out):
        assert np.shares_memory(part.out, out)
        part.out[...] = values[part.index]
    np.testing.assert_array_equal(out, wanted)


def test_a_slice_of_another_shape_has_one_part_for_each_run():
    experts = Reshape(Source("a"), (12, 10), (3, 4, 10))
    whole, columns = slice(0, 4), slice(3, 10)
    parts = list(experts.copies((slice(1, 3), whole, columns), np.empty((2, 4, 7))))
    assert [part.index for part in parts] == [(slice(4, 8), columns), (slice(8, 12), columns)]
    parts = list(Reshape(Source("a"), (12, 10), (120,)).copies((slice(8, 55),), np.empty(47)))
    assert [part.index[0] for part in parts] == [slice(0, 1), slice(1, 5), slice(5, 6)]


@pytest.mark.parametrize("wanted", FLOATS, ids=str)
@pytest.mark.parametrize("stored", FLOATS, ids=str)
def test_single_numbers_are_read_and_stacked(stored: np.dtype, wanted: np.dtype, tmp_path: Path):
    arrays = {"a": np.array(1.5, stored), "b": np.array(-0.25, stored)}
    plan = plan_of(tmp_path, Source("b"), arrays, ())
    np.testing.assert_array_equal(filled(plan, (), wanted), arrays["b"].astype(wanted))
    plan = plan_of(tmp_path, Stack((Source("b"), Source("a"))), arrays, (2,))
    np.testing.assert_array_equal(filled(plan, (slice(0, 2),), wanted), np.array([-0.25, 1.5], wanted))


def test_runs_are_maximal():
    assert list(runs(np.array([4, 5, 6, 2, 3, 9]))) == [slice(4, 7), slice(2, 4), slice(9, 10)]
    assert list(runs(np.array([1, 4, 7]))) == [slice(1, 8, 3)]
    assert list(runs(np.array([5, 3, 1]))) == [slice(5, 6), slice(3, 4), slice(1, 2)]


def test_casts_equal_those_of_torch(tmp_path: Path):
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**16, (64, 33), dtype=np.uint16)
    stored = bits.view(ml_dtypes.bfloat16)
    plan = plan_of(tmp_path, Source("a"), {"a": stored}, stored.shape)
    full = tuple(slice(0, dim) for dim in stored.shape)
    expected = torch.tensor(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert filled(plan, full, np.float32).tobytes() == expected.tobytes()  # infinities and NaN payloads too


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2], ids=str)
def test_a_value_that_is_too_large_is_not_called_infinite(tmp_path: Path, dtype: type):
    large, name = np.float32(3.4e38), np.dtype(dtype).name
    plan = plan_of(tmp_path, Source("a"), {"a": np.array([[1, 2], [large, 3]], np.float32)}, (2, 2))
    with pytest.raises(CheckpointError, match=f"'p': has finite values that do not fit into {name}"):
        filled(plan, (slice(0, 2), slice(0, 2)), np.dtype(dtype))
    plan = plan_of(tmp_path, Source("a"), {"a": np.array([[1, 2], [np.inf, 3]], np.float32)}, (2, 2))
    filler = Filler(plan)
    filler.fill("p", (slice(0, 2), slice(0, 2)), np.empty((2, 2), dtype))
    filler.reader.close()
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        filler.check_finite()


def test_a_value_that_float16_cannot_hold_is_an_error_that_names_the_parameter(tmp_path: Path):
    plan = plan_of(tmp_path, Source("a"), {"a": np.array([[1.0, 70000.0]], np.float32)}, (1, 2))
    with pytest.raises(
        CheckpointError, match=r"tensor 'p': 1 values do not fit into float16; use param_dtype=bfloat16"
    ):
        filled(plan, (slice(0, 1), slice(0, 2)), np.float16)


def test_a_large_cast_goes_through_the_scratch_in_blocks(tmp_path: Path):
    stored = np.arange(3 * 700 * 1100, dtype=np.float32).reshape(3, 700, 1100)
    plan = plan_of(tmp_path, Source("a"), {"a": stored}, stored.shape)
    full = tuple(slice(0, dim) for dim in stored.shape)
    np.testing.assert_array_equal(filled(plan, full, np.float64), stored)


def test_an_aligned_file_is_used_where_it_lies(tmp_path: Path):
    plan = plan_of(
        tmp_path, Source("a"), {"pad": np.zeros(1, np.float32), "a": np.ones((64, 16), np.float32)}, (64, 16)
    )
    tensor = plan.tensors["a"]
    aligned = tensor.offset % 64 == 0  # type: ignore[attr-defined]
    whole = (slice(0, 64), slice(0, 16))
    assert (mappable(plan, "p", whole, np.dtype(np.float32)) is not None) == aligned
    assert mappable(plan, "p", whole, np.dtype(np.float16)) is None
    assert mappable(plan, "p", (slice(0, 64), slice(0, 8)), np.dtype(np.float32)) is None


def test_every_shard_reads_only_its_own_bytes(directory: Path):
    def bytes_read(**arguments: Any) -> tuple[int, int]:
        model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)
        report, owned = model.load_report, 0
        for leaf in flatten(params).values():
            owned += sum(data.nbytes for data in {str(s.index): s.data for s in leaf.addressable_shards}.values())
        return report.bytes_read + report.bytes_mapped, owned

    for dims in [(1, 1, 1, 1), (1, 8, 1, 1), (1, 2, 2, 2), (8, 1, 1, 1)]:
        read, owned = bytes_read(auto_shard_params=True, sharding_axis_dims=dims)
        assert read == owned == (directory / "model.safetensors").stat().st_size - header_bytes(directory)


def header_bytes(directory: Path) -> int:
    return 8 + int.from_bytes((directory / "model.safetensors").read_bytes()[:8], "little")


def test_replicas_share_one_buffer(directory: Path):
    _, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        directory, auto_shard_params=True, sharding_axis_dims=(8, 1, 1, 1)
    )
    shards = params["lm_head"]["kernel"].addressable_shards
    assert len({shard.data.unsafe_buffer_pointer() for shard in shards}) == 1


@pytest.mark.parametrize("donatable", [False, True])
def test_donatable_arrays_are_updated_in_place(directory: Path, donatable: bool):
    _, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, donatable=donatable)
    kernel = params["lm_head"]["kernel"]
    address = kernel.unsafe_buffer_pointer()
    updated = jax.jit(lambda array: array * 2, donate_argnums=0)(kernel)
    assert (updated.unsafe_buffer_pointer() == address) == donatable


def test_a_file_that_shrinks_during_the_load_is_an_error(directory: Path, tmp_path: Path):
    array = np.ones((1000, 1000), np.float32)
    plan = plan_of(tmp_path, Source("a"), {"a": array}, array.shape)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:5000])
    sharding = {"p": jax.sharding.SingleDeviceSharding(jax.devices()[0])}
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*'a'.*shrank"):
        execute(plan, sharding, {"p": np.dtype(np.float64)})


MEASURE = """
import sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp
from easydel import AutoEasyDeLModelForCausalLM, loading

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("RssAnon"))

AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[1])  # imports and small caches are not what is measured
original, peak = loading.execute, 0
def watched(*args, **kwargs):
    global before, peak
    before, running = anonymous(), True
    def watch():
        global peak
        while running:
            peak = max(peak, anonymous())
            time.sleep(0.0005)
    thread = threading.Thread(target=watch)
    thread.start()
    result = original(*args, **kwargs)
    running = False
    thread.join()
    return result
loading.execute = watched
model, params = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[2], **eval(sys.argv[3]))
report = model.load_report
print(peak - before, report.peak_bytes, sum(leaf.nbytes for leaf in jax.tree.leaves(params)), report.bytes_mapped)
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 MB of bfloat16."""
    import transformers

    path = tmp_path_factory.mktemp("larger")
    config = transformers.LlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=5, num_attention_heads=8
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        "dict(param_dtype=jnp.bfloat16)",
        "dict()",
        "dict(load_in_8bit=True)",
        "dict(param_dtype=jnp.bfloat16, scan_layers=True)",
        "dict(param_dtype=jnp.bfloat16, auto_shard_params=True, sharding_axis_dims=(1, 2, 4, 1))",
    ],
)
def test_memory_stays_within_32_mib_of_the_parameters(larger: Path, directory: Path, arguments: str):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory), str(larger), arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, reported, params, mapped = map(int, done.stdout.split())
    assert params > 80e6
    assert max(peak, reported) <= params - mapped + (32 << 20)
    assert reported > 0.8 * (params - mapped)
