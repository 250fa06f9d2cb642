"""Quantized matrices of every layout: read whole and by slices, and refused by name where they are damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packed_files import WRITERS, Packed
from safetensors.numpy import save_file

from easydel.checkpoint import Checkpoint, open_checkpoint
from easydel.errors import EasyDeLError
from easydel.weights.coded import CodedTensor
from easydel.weights.expressions import Source
from easydel.weights.formats import unpacked
from easydel.weights.keep import NotKept, coded_paths, kept_as
from easydel.weights.plan import Plan
from easydel.weights.read import Reader
from easydel.weights.sources import TensorSource, Turned

SLICES = 30
# whose codes share no bytes: they have 5 to 8 bits, or (groups that lie in several columns) are not kept as codes
UNSHARED = ("gptq-8", "auto-round", "auto-round-gptq", "mlx-5", "mlx-6", "mlx-8", "mlx-mxfp8", "hqq-8", "hqq-columns")


def written(made: Packed, directory: Path) -> TensorSource:
    file = directory / "model.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in made.tensors.items()}, file)
    tensors = unpacked(made.settings, open_checkpoint([file]), directory / "config.json")
    assert list(tensors) == ["m.weight"]
    return tensors["m.weight"]


def sliced(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[slice, ...]:
    ends = (sorted(rng.integers(0, size + 1, 2).tolist()) for size in shape)
    return tuple(slice(start, stop, int(rng.integers(1, 4))) for start, stop in ends)


@pytest.mark.parametrize("name", WRITERS)
def test_any_slice_is_the_slice_of_the_weights_that_a_layout_stands_for(name: str, tmp_path: Path):
    rng = np.random.default_rng(5)
    made = WRITERS[name](rng)
    tensor = written(made, tmp_path)
    assert tensor.shape == made.weight.shape
    whole = tensor.read()
    np.testing.assert_allclose(whole, made.weight, rtol=1e-6, atol=1e-7)
    for _ in range(SLICES):
        index = sliced(rng, tensor.shape)
        np.testing.assert_array_equal(tensor.read(index), whole[index])
    if isinstance(tensor, CodedTensor):
        index = tuple(slice(0, size) for size in tensor.shape)
        blocks = tuple(slice(0, size) for size in tensor.form.blocks(tensor.shape))
        assert tensor.codes(index).dtype == tensor.form.code
        assert tensor.codes(index).shape == tensor.shape
        assert tensor.scales(blocks).shape == tensor.form.blocks(tensor.shape)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in UNSHARED])
def test_bytes_that_are_held_are_those_of_the_codes_however_they_were_read(name: str, tmp_path: Path):
    rng = np.random.default_rng(5)
    tensor = written(WRITERS[name](rng), tmp_path)
    tensor = tensor.of if isinstance(tensor, Turned) else tensor
    assert isinstance(tensor, CodedTensor)
    for turned in (False, True):
        dim = len(tensor.shape) - (2 if turned else 1)
        for start, stop, step in ((0, 8, 1), (8, 24, 1), (4, 28, 1), (16, 16, 1), (0, 32, 2), (2, 10, 1), (1, 9, 1)):
            index = tuple(slice(start, stop, step) if i == dim else slice(0, n, 1) for i, n in enumerate(tensor.shape))
            count = len(range(*index[dim].indices(tensor.shape[dim])))
            if stop > tensor.shape[dim] or count % tensor.form.per_byte:
                continue
            expected = CodedTensor.packed(tensor, index, turned=turned)
            np.testing.assert_array_equal(tensor.packed(index, turned=turned), expected)


def test_groups_that_lie_in_several_columns_say_why_they_become_floats(tmp_path: Path):
    tensor = written(WRITERS["hqq-columns"](np.random.default_rng(5)), tmp_path)
    plan = Plan({"w": Source("m.weight")}, {"w": tensor.shape}, {"m.weight": tensor}, ())
    assert coded_paths(plan) == {"w": True}
    with pytest.raises(NotKept, match="its groups are pieces of several columns"):
        kept_as(plan, "w", (1, 1))


class Elsewhere:
    """A file of another machine; counts the bytes that it was asked for."""

    def __init__(self, file: Path):
        self.content, self.sent = file.read_bytes(), 0
        self.size = len(self.content)

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.content[offset : offset + len(out)]
        self.sent += len(out)

    def leave_hash(self, reason: str) -> None: ...
    def verdict(self) -> str:
        return ""


@pytest.mark.parametrize("name", ["gptq-apart", "hqq-3", "hqq-apart-4"])
def test_a_matrix_whose_slices_lie_all_over_a_file_elsewhere_is_fetched_once(name: str, tmp_path: Path):
    made = WRITERS[name](np.random.default_rng(5))
    local = written(made, tmp_path)
    file = tmp_path / "model.safetensors"
    source = Elsewhere(file)
    tensors = {key: replace(tensor, source=source) for key, tensor in open_checkpoint([file]).items()}
    tensor = unpacked(made.settings, Checkpoint(tensors, [file], "safetensors", {}), file)["m.weight"]
    assert isinstance(tensor, CodedTensor)
    assert tensor.scattered
    source.sent, reader = 0, Reader()
    for row in range(tensor.shape[0]):
        index = (slice(row, row + 1), slice(0, tensor.shape[1]))
        np.testing.assert_array_equal(reader.at_hand(tensor).read(index), local.read(index))
    assert source.sent <= sum(array.nbytes for array in made.tensors.values())


def test_streams_that_are_held_as_they_lie_are_not_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("easydel.weights.formats.parts.unpacked_bits", None)
    for name, turned in (("gptq-4", False), ("mlx-4", False), ("mlx-mxfp4", False)):
        (tmp_path / name).mkdir()
        tensor = written(WRITERS[name](np.random.default_rng(5)), tmp_path / name)
        tensor = tensor.of if isinstance(tensor, Turned) else tensor
        assert isinstance(tensor, CodedTensor)
        tensor.packed(tuple(slice(0, size, 1) for size in tensor.shape), turned=turned)


def changed(name: str, change: Callable[[Packed], None], directory: Path) -> pytest.ExceptionInfo[EasyDeLError]:
    made = WRITERS[name](np.random.default_rng(5))
    change(made)
    with pytest.raises(EasyDeLError) as raised:
        written(made, directory)
    return raised


def cut(leaf: str) -> Callable[[Packed], None]:
    """Leaves out the last row of a tensor."""

    def change(made: Packed) -> None:
        made.tensors[f"m.{leaf}"] = made.tensors[f"m.{leaf}"][:-1]

    return change


def lacking(leaf: str) -> Callable[[Packed], None]:
    return lambda made: made.tensors.pop(f"m.{leaf}")


def filled(leaf: str, value: object) -> Callable[[Packed], None]:
    """Gives a tensor's numbers another value."""

    def change(made: Packed) -> None:
        made.tensors[f"m.{leaf}"] = np.full_like(made.tensors[f"m.{leaf}"], value)

    return change


def said(**settings: object) -> Callable[[Packed], None]:
    return lambda made: made.settings.update(settings)


def stated(**entries: object) -> Callable[[Packed], None]:
    """Changes entries of the JSON beside a tensor of bitsandbytes."""

    def change(made: Packed) -> None:
        name = next(name for name in made.tensors if "quant_state" in name)
        state = json.loads(made.tensors[name].tobytes()) | entries
        made.tensors[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)

    return change


STATE = "m.weight.quant_state.bitsandbytes__nf4"
DAMAGED = [
    ("gptq-4", cut("qweight"), "m.qweight", r"is \[11, 32\], expected \[12, 32\]"),
    ("gptq-4", cut("scales"), "m.qweight", r"scales are \[2, 32\], expected \[3, 32\]"),
    ("gptq-3", cut("qzeros"), "m.qweight", "its qzeros are"),
    ("gptq-4", lacking("scales"), "m.qweight", "lacks scales and qzeros"),
    ("gptq-apart", lacking("g_idx"), "m.qweight", "lacks scales, qzeros and g_idx"),
    ("gptq-apart", filled("g_idx", 3), "m.qweight", "groups 3 to 3, expected 0 to 2"),
    ("gptq-apart", filled("g_idx", -1), "m.qweight", "groups -1 to -1, expected 0 to 2"),
    ("gptq-4", said(bits=5), "m.qweight", "bits=5"),
    ("gptq-4", said(bits=4.0), "m.qweight", "bits=4.0"),
    ("gptq-4", said(group_size=0), "m.qweight", "group_size=0"),
    ("gptq-4", said(group_size=10**30), "m.qweight", r"scales are \[3, 32\], expected \[1, 32\]"),
    ("gptq-4", said(checkpoint_format="marlin"), None, "'marlin'"),
    ("gptq-4", said(dynamic={"+:(": {"bits": 8}}), None, "not a simple regular expression"),
    ("auto-round", said(packing_format="auto_round:tiles"), None, "'auto_round:tiles'"),
    ("awq-gemm", cut("qzeros"), "m.qweight", "its qzeros are"),
    ("awq-gemm", said(group_size=80), "m.qweight", "groups of 80 do not divide"),
    ("awq-gemv", cut("scales"), "m.qweight", "its scales are"),
    ("awq-gemv_fast", cut("qweight"), "m.qweight", "its scales are"),
    ("awq-gemm", said(version="marlin"), None, "'marlin'"),
    ("awq-gemm", said(bits=8), "m.qweight", "bits=8"),
    ("bnb-nf4", cut("weight"), "m.weight", "has 319 bytes, expected 320"),
    ("bnb-nf4", cut("weight.absmax"), "m.weight", "its absmax is"),
    ("bnb-nf4", lacking("weight.quant_map"), STATE, "lacks m.weight, absmax and quant_map"),
    ("bnb-nf4", filled("weight.quant_map", np.nan), "m.weight", "its quant_map has NaN or Inf"),
    ("bnb-odd", cut("weight.nested_absmax"), "m.weight", "its nested_absmax is"),
    ("bnb-odd", lacking("weight.nested_quant_map"), "m.weight", "its absmax is uint8, expected float32"),
    ("bnb-nf4", stated(shape=[5, 129]), "m.weight", "has 320 bytes, expected 323"),
    ("bnb-nf4", stated(shape=[1 << 40, 1 << 40]), "m.weight", "has 320 bytes"),
    ("bnb-nf4", stated(shape="5"), STATE, "has shape 5"),
    ("bnb-nf4", stated(shape=[-5, -128]), STATE, "has shape"),
    ("bnb-nf4", stated(blocksize=10**30), STATE, "has blocksize 10000"),
    ("bnb-nf4", stated(blocksize=63), STATE, "has blocksize 63"),
    ("bnb-odd", stated(nested_offset=float("nan")), STATE, "nested_offset nan"),
    ("bnb-nf4", filled(STATE.removeprefix("m."), ord("[")), STATE, "is no JSON"),
    ("mlx-3", cut("scales"), "m.weight", "its scales are"),
    ("mlx-3", cut("weight"), "m.weight", "its scales are"),
    ("mlx-3", lacking("biases"), "m.weight", "no biases"),
    ("mlx-3", said(m={"group_size": 28, "bits": 3}), "m.weight", "groups of 28 numbers of 3 bits do not fill"),
    ("mlx-3", said(m={"group_size": 32, "bits": 7}), "m.weight", "bits=7"),
    ("mlx-mxfp4", said(mode="mxfp5"), "m.weight", "mode='mxfp5'"),
    ("mlx-mxfp4", said(group_size=16), "m.weight", "group_size=16, expected 4 and 32"),
    ("mlx-mxfp8", cut("scales"), "m.weight", "its scales are"),
    ("hqq-4", cut("W_q"), "m.W_q", r"is \[23, 32\], expected \[24, 32\]"),
    ("hqq-4", cut("zero"), "m.W_q", "its zero is"),
    ("hqq-apart-4", cut("W_q"), "m.W_q", r"is \[3, 80\], expected \[4, 80\]"),
    ("hqq-apart-4", cut("scale"), "m.W_q", r"its scale is \[0, 80\], expected \[1, 80\]"),
    ("hqq-apart-4", filled("axis", 1), "m.W_q", "its scale is"),
    ("hqq-4", filled("nbits", 7), "m.W_q", r"nbits=\[7\]"),
    ("hqq-4", filled("axis", 2), "m.W_q", r"axis=\[2\]"),
    ("hqq-4", filled("shape", 1 << 40), "m.W_q", "expected"),
    ("hqq-4", filled("shape", -1), "m.W_q", r"shape=\[-1, -1\]"),
    ("hqq-4", lacking("shape"), "m.W_q", "lacks scale, zero, nbits, axis and shape"),
    ("bitnet-bitlinear", lacking("weight"), "m.weight_scale", "has no m.weight"),
    ("bitnet-bitlinear", said(quantization_mode="online"), None, "quantization_mode='online'"),
    ("bitnet-bitlinear", said(use_rms_norm=True), None, "use_rms_norm=True"),
]


def said_of(part: object) -> str:
    return "damaged" if callable(part) else str(part)  # a function's own text is another in each process


@pytest.mark.parametrize(("name", "change", "tensor", "problem"), DAMAGED, ids=said_of)
def test_damage_is_told_by_file_and_tensor_before_weights_are_read(
    name: str, change: Callable[[Packed], None], tensor: str | None, problem: str, tmp_path: Path
):
    error = changed(name, change, tmp_path).value
    assert error.tensor == tensor
    assert Path(str(error.file)).name == ("config.json" if tensor is None else "model.safetensors")
    assert re.search(problem, str(error))
