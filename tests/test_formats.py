"""Checkpoints of quantization tools: weights and logits as the tools have them, and matrices of every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
import packed_files
import pytest
from safetensors.numpy import save_file
from scaled_files import COLUMNS, FP8, ROWS, WRITERS, Scaled, fp8_codes, scales_of

from easydel import AutoEasyDeLModelForCausalLM
from easydel.checkpoint import open_checkpoint
from easydel.config import HFConfig
from easydel.errors import CheckpointError, EasyDeLError, UnsupportedModelError
from easydel.forms import BESIDE, FACTOR
from easydel.source import open_source, quantization
from easydel.stored import forms_of
from easydel.tree import flatten
from easydel.weights import coded
from easydel.weights.coded import CodedTensor
from easydel.weights.formats import READERS, unpacked
from easydel.weights.formats.finite import check_scales
from easydel.weights.formats.matrix import Turned
from easydel.weights.sources import TensorSource

CHECKPOINTS = sorted(path for path in (Path(__file__).parent / "formats").iterdir() if path.is_dir())
SLICES = 12
DAMAGES = 15  # of each layout; 1,000 once took a minute
CT = {"quant_method": "compressed-tensors"}
JUNK = (None, -1, 0, 10**9, 1.5, "x", [], {}, [1, 2], [0, 0], {"x": 1}, True)
DTYPES = (np.uint8, np.int8, np.int32, np.int64, np.float16, np.float32, np.bool_, ml_dtypes.bfloat16, FP8)
Damage = Callable[[Scaled], object]
ALL = [*WRITERS, *packed_files.WRITERS]
NOT_READ = (".input_scale", ".k_scale", ".v_scale", "_activation_scale", ".packing")
# Zeros of symmetric weights are not looked at; ten words of ten numbers less one are the 96 numbers in one stream.
AS_WELL = (("gptq-sym", "m.qzeros"), ("ct-int3-fields", "m.weight_packed"))


@pytest.mark.parametrize("directory", CHECKPOINTS, ids=lambda path: path.name)
def test_weights_and_logits_are_those_of_the_tool(directory: Path, caplog: pytest.LogCaptureFixture):
    with np.load(directory / "reference.npz") as file:
        reference = dict(file)
    tensors = open_source(directory, saved=False).tensors
    for name in (name for name in reference if name.startswith("w:")):
        weights = reference[name]
        np.testing.assert_allclose(tensors[name[2:]].read(), weights, rtol=0, atol=1e-6 * float(np.abs(weights).max()))
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    logits = reference["logits"]
    tolerance = 2e-4 * float(np.abs(logits).max()) + 1e-5
    np.testing.assert_allclose(model(reference["input_ids"]).logits, logits, rtol=0, atol=tolerance)
    floats = [line for line in caplog.text.splitlines() if " because " in line]
    assert all("its module computes with floats" in line for line in floats), floats  # routers
    leaves, held, least = flatten(model.params), 0, 0.0
    for path in forms_of(model):
        held += sum(leaf.nbytes for end in ("", *BESIDE) if (leaf := leaves.get(f"{path}{end}")) is not None)
    for tensor in tensors.values():
        if isinstance(tensor, CodedTensor) and ".gate.weight" not in tensor.name:
            least += bytes_of_codes_and_scales(tensor)
    assert held <= 1.02 * least


def bytes_of_codes_and_scales(tensor: CodedTensor) -> float:
    """As dtypes of JAX have them: codes of 3 bits take 4. Rows have at least a scale each, and zeros are bytes."""
    *lead, rows, columns = tensor.shape
    blocks = max(prod(tensor.form.blocks(tensor.shape)), prod(lead) * rows)
    of_block = tensor.scale_dtype.itemsize + (max(tensor.shift_dtype.itemsize, 1) if tensor.form.shift else 0)
    beside = sum(4 * prod(lead) * (1 if end == FACTOR else columns) for end in tensor.extra())
    return prod(tensor.shape) * tensor.form.bits / 8 + blocks * of_block + beside


def written(made: Scaled, directory: Path) -> dict[str, TensorSource]:
    file = directory / "model.safetensors"
    tensors = {name: np.ascontiguousarray(array) for name, array in made.tensors.items()}
    save_file(tensors, file, metadata={"format": "pt", **made.metadata})
    return unpacked(made.settings, open_checkpoint([file]), directory / "config.json")


def sliced(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[slice, ...]:
    ends = (sorted(rng.integers(0, size + 1, 2).tolist()) for size in shape)
    return tuple(slice(start, stop, int(rng.integers(1, 4))) for start, stop in ends)


@pytest.mark.parametrize("kind", WRITERS)
def test_any_slice_is_the_slice_of_the_weights_that_a_layout_stands_for(kind: str, tmp_path: Path):
    rng = np.random.default_rng(3)
    made = WRITERS[kind](rng)
    found = written(made, tmp_path)
    assert found.keys() == made.weights.keys()
    for name, weights in made.weights.items():
        tensor = found[name]
        whole = tensor.read()
        np.testing.assert_allclose(whole, weights, rtol=3e-7, atol=1e-9)
        assert tensor.shape == whole.shape
        for _ in range(SLICES):
            index = sliced(rng, tensor.shape)
            np.testing.assert_array_equal(tensor.read(index), whole[index])
        if isinstance(tensor, Turned):
            np.testing.assert_array_equal(tensor.turned.read().swapaxes(-1, -2), whole)
        kept = tensor.turned if isinstance(tensor, Turned) else tensor
        assert isinstance(kept, CodedTensor)
        assert_forms_parts(kept)


def test_scales_of_blocks_may_have_dimensions_of_size_one_between(tmp_path: Path):
    rng = np.random.default_rng(3)
    codes, scales = fp8_codes(rng, 40, 300), scales_of(rng, 1, 1, 3, 1)
    settings = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
    found = written(Scaled({"m.weight": codes, "m.weight_scale": scales}, settings, {}), tmp_path)["m.weight"]
    wide = np.repeat(scales.reshape(1, 3), 128, axis=1)[:, :300]
    np.testing.assert_allclose(found.read(), codes.astype(np.float32) * wide, rtol=3e-7)


def test_numbers_looked_up_in_pairs_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensor = written(WRITERS["fp8-blocks"](np.random.default_rng(3)), tmp_path)["m.weight"]
    for index in ((), np.s_[3:7, 1:], np.s_[2:9, 5:12]):
        monkeypatch.setattr(coded, "PAIRED", 10**9)
        alone = tensor.read(index)
        monkeypatch.setattr(coded, "PAIRED", 0)
        np.testing.assert_array_equal(tensor.read(index), alone)


def assert_forms_parts(tensor: CodedTensor) -> None:
    """The parts have the dtypes and shapes that the form states."""
    form, index = tensor.form, tuple(slice(0, size) for size in tensor.shape)
    counts = form.blocks(tensor.shape)
    blocks = tuple(slice(0, size) for size in counts)
    codes = tensor.codes(index)
    assert (codes.dtype, codes.shape) == (form.code, tensor.shape)
    if tensor.groups(index[-1]) is None:
        assert tensor.scales(blocks).shape == counts
    if form.shift:
        assert tensor.shifts(blocks).shape == tensor.scales(blocks).shape
    if (factors := tensor.factors(index[:-2])) is not None:
        assert factors.shape == tensor.shape[:-2]


def without(name: str) -> Damage:
    return lambda made: made.tensors.pop(name)


def cut(name: str, dim: int) -> Damage:
    def damage(made: Scaled) -> None:
        array = made.tensors[name]
        made.tensors[name] = array[tuple(slice(1 if at == dim else None, None) for at in range(array.ndim))]

    return damage


def instead(name: str, value: Any) -> Damage:
    return lambda made: made.tensors.update({name: np.asarray(value)})


def scheme(**changes: Any) -> Damage:
    return lambda made: made.settings["config_groups"]["group_0"]["weights"].update(changes)


def setting(**changes: Any) -> Damage:
    return lambda made: made.settings.update(changes)


@pytest.mark.parametrize(
    ("kind", "damage", "tensor", "told"),
    [
        ("fp8-blocks", cut("m.weight_scale_inv", 1), "m.weight", r"is \[40, 96\], its scales are \[2, 2\]"),
        ("fp8-blocks", instead("m.weight_scale_inv", np.ones((2, 3), np.int8)), "m.weight", "has scales that are int8"),
        ("fp8-rows", cut("m.weight_scale", 0), "m.weight", r"its scales are \[39, 1\]"),
        ("fp8-deepseek-v4", cut("e.weight", 1), "e.weight", r"is \[40, 94\], its scales are \[40, 3\]"),
        ("mxfp8", cut("m.weight_scale_inv", 1), "m.weight", "not of blocks of 1 rows and 32 columns"),
        ("ct-int4", cut("m.weight_packed", 1), "m.weight_packed", r"is \[40, 11\] with shape \[40 96\]"),
        ("ct-int4", cut("m.weight_packed", 0), "m.weight_packed", r"is \[39, 12\] with shape \[40 96\]"),
        ("ct-int4", instead("m.weight_shape", [40, 128]), "m.weight_packed", r"with shape \[ *40 128\]"),
        ("ct-int4", instead("m.weight_shape", [np.nan, 1]), "m.weight_packed", "which 4 bits a number do not give"),
        ("ct-int4", scheme(num_bits=5), "m.weight_packed", "which 5 bits a number do not give"),
        ("ct-int4", scheme(num_bits="4"), "m.weight_packed", "which no bits a number do not give"),
        ("ct-int4", scheme(group_size=48), "m.weight_packed", "3 scales for 96 columns, expected groups of 48"),
        ("ct-int4", cut("m.weight_scale", 1), "m.weight_packed", "2 scales for 96 columns, expected groups of 32"),
        (
            "ct-int4",
            cut("m.weight_zero_point", 0),
            "m.weight_zero_point",
            r"is int32 \[4, 3\], expected int32 \[5, 3\]",
        ),
        ("ct-int4", without("m.weight_scale"), "m.weight_packed", "has no m.weight_scale beside it"),
        ("ct-int4-order", instead("m.weight_g_idx", np.full(96, 3, np.int32)), "m.weight_packed", "3 to 3, of 3"),
        ("ct-int4-order", cut("m.weight_g_idx", 0), "m.weight_packed", r"g_idx \[95\], expected \[96\]"),
        ("ct-int8-rows", cut("m.weight_zero_point", 0), "m.weight", r"zero points \[39, 1\], expected \[40, 1\]"),
        ("ct-int8-groups", scheme(group_size=64), "m.weight", "not of blocks of 1 or all rows"),
        (
            "ct-nvfp4",
            instead("m.weight_global_scale", np.ones(2, np.float32)),
            "m.weight_packed",
            r"global scale \[2\]",
        ),
        ("modelopt-nvfp4", without("m.weight_scale_2"), "m.weight", "has no weight_scale_2 beside it"),
        ("modelopt-awq", cut("m.weight_scale", 1), "m.weight", "not of blocks of 1 rows and 32 columns"),
        ("modelopt-awq", cut("m.pre_quant_scale", 0), "m.weight", r"pre_quant_scale \[95\], expected \[96\]"),
        ("torchao-groups", lambda made: made.metadata.clear(), "m._weight_qdata", "tensor without a description"),
        ("torchao-groups", without("m._weight_scale"), "m._weight_qdata", "with a _weight_scale beside it"),
        (
            "torchao-groups",
            instead("m._weight_zero_point", np.full((40, 3), 8, np.int8)),
            "m._weight_zero_point",
            "has zero points 8 to 8, expected -8 to 7 for 4 bits",
        ),
        (
            "ct-int4-tensor",
            instead("m.weight_zero_point", np.array([-9], np.int8)),
            "m.weight_zero_point",
            "has zero points -9 to -9, expected -8 to 7",
        ),
        ("quanto-int8", without("m.weight._scale"), "m.weight._data", "with a weight._scale beside it"),
        ("bnb-int8", instead("m.weight_format", np.uint8(2)), "m.weight", r"in a GPU's order \(weight_format \[2\]\)"),
        ("bnb-int8", cut("m.SCB", 0), "m.weight", r"its scales are \[39, 1\]"),
        ("gpt-oss", cut("e.down_proj_scales", 2), "e.down_proj_blocks", r"its scales are \[2, 40, 2\]"),
        ("ranged", setting(num_bits=3), None, "has 3 bits, expected one of"),
        ("ranged", setting(module_quant_configs={"(a+)+": {}}), None, "not a simple regular expression"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: str, damage: Damage, tensor: str | None, told: str, tmp_path: Path):
    made = WRITERS[kind](np.random.default_rng(3))
    damage(made)
    with pytest.raises(EasyDeLError, match=told) as caught:
        written(made, tmp_path)
    assert caught.value.tensor == tensor
    assert caught.value.file == str(tmp_path / ("config.json" if tensor is None else "model.safetensors"))


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path):
    made = WRITERS["ct-mixed"](np.random.default_rng(3))
    for name in ("a.weight_scale", "c.weight_scale"):
        cut(name, 0)(made)
    with pytest.raises(CheckpointError, match=r"2 problems[^$]*'a.weight_packed'[^$]*'c.weight'"):
        written(made, tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quant_method": "aqlm"}, "'aqlm' .*codebooks.*use the unquantized checkpoint"),
        ({"quant_method": "exl3"}, "'exl3' .*GPU"),
        ({"quant_method": "new"}, "quantized by 'new'"),
        ({"quant_method": ["fp8"]}, "quantized by"),
        ({}, "an unknown method"),
        ({**CT, "format": "marlin-24"}, "as marlin-24; use a checkpoint in pack-quantized"),
        ({**CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "as sparse-24-bitmask"),
        ({**CT, "transform_config": {"config_groups": {"R1": {}}}}, "rotated inputs"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(settings: dict[str, Any], told: str, tmp_path: Path):
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=told) as caught:
        unpacked(settings, open_checkpoint([tmp_path / "model.safetensors"]), tmp_path / "config.json")
    assert caught.value.file == str(tmp_path / "config.json")


def test_settings_are_found_where_tools_write_them(tmp_path: Path):
    def found(config: dict[str, Any]) -> object:
        settings, file = quantization(HFConfig(config, file=tmp_path / "config.json"), tmp_path)
        return settings and (settings["quant_method"], file and file.name)

    assert found({}) is None
    assert found({"quantization": {"bits": 4, "group_size": 64}}) == ("mlx", "config.json")
    assert found({"quantization_config": {"quant_algo": "FP8"}}) == ("modelopt", "config.json")
    assert found({"compression_config": {"quant_method": "compressed-tensors"}}) == (
        "compressed-tensors",
        "config.json",
    )
    (tmp_path / "quanto_qmap.json").write_text("{}")
    assert found({}) == ("quanto", "quanto_qmap.json")
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert found({}) == ("modelopt", "hf_quant_config.json")
    assert found({"quantization_config": {"quant_method": "fp8"}}) == ("fp8", "config.json")


def damaged(rng: np.random.Generator, made: Scaled) -> None:
    """Changes one tensor, or one setting, in one of many ways."""
    name = list(made.tensors)[rng.integers(len(made.tensors))]
    array, dtype = made.tensors[name], DTYPES[rng.integers(len(DTYPES))]
    inner = (
        made.settings if rng.integers(2) else made.settings.get("config_groups", {}).get("group_0", {}).get("weights")
    )
    changes: list[Callable[[], object]] = [
        lambda: made.tensors.pop(name),
        lambda: made.tensors.update({name: array.T}),
        lambda: made.tensors.update({name: array.reshape(-1)}),
        lambda: made.tensors.update({name: array[None]}),
        lambda: made.tensors.update({name: np.atleast_1d(array)[:0]}),
        lambda: made.tensors.update({name: array[..., 1:]}) if array.ndim else None,
        lambda: made.tensors.update({name: np.zeros((), dtype)}),
        lambda: made.tensors.update({name: np.zeros(array.shape, dtype)}),
        lambda: made.tensors.update({name: array.view(np.uint8) if array.ndim else array}),
        lambda: made.metadata.update({"m.weight": ("{", "[]", "null", '{"_type": 5, "_data": []}')[rng.integers(4)]}),
        *[lambda: inner and inner.update({list(inner)[rng.integers(len(inner))]: JUNK[rng.integers(len(JUNK))]})] * 5,
    ]
    changes[rng.integers(len(changes))]()


def one_of(kind: str) -> Scaled:
    rng = np.random.default_rng(3)
    if kind in WRITERS:
        return WRITERS[kind](rng)
    made = packed_files.WRITERS[kind](rng)
    return Scaled(made.tensors, made.settings, {"m.weight": made.weight})


def test_every_reader_has_a_writer_here():
    methods = {one_of(kind).settings["quant_method"] for kind in ALL}
    assert {READERS[method] for method in methods} == {*READERS.values()}


def shortened(made: Scaled) -> Iterator[tuple[str, Scaled]]:
    """Yields the tensors with one of them a row or a column shorter, and that one's name."""
    for name, array in made.tensors.items():
        for dim in range(array.ndim):
            short = array[tuple(slice(0, -1) if at == dim else slice(None) for at in range(array.ndim))]
            yield name, replace(made, tensors=made.tensors | {name: short})


@pytest.mark.parametrize("kind", ALL)
def test_a_tensor_cut_short_is_refused_or_gives_another_shape_which_no_model_has(kind: str, tmp_path: Path):
    whole = one_of(kind)
    for name, made in shortened(whole):
        found = shapes_or_error(made, tmp_path)
        if isinstance(found, EasyDeLError):
            assert found.file == str(tmp_path / "model.safetensors")
            assert str(found.tensor).split(".")[0] == name.split(".")[0]
        else:
            same = found == {name: weights.shape for name, weights in whole.weights.items()}
            assert not same or (kind, name) in AS_WELL or name.endswith(NOT_READ), name


def shapes_or_error(made: Scaled, directory: Path) -> Mapping[str, tuple[int, ...]] | EasyDeLError:
    try:
        return {name: tensor.shape for name, tensor in written(made, directory).items()}
    except EasyDeLError as error:
        return error


def spoiled(array: np.ndarray) -> np.ndarray | None:
    """Returns the array with its last number NaN; None if its dtype has none."""
    if array.dtype.kind in "iu" or not array.size:
        return None
    changed = array.copy()
    changed.reshape(-1)[-1] = np.nan
    return changed


@pytest.mark.parametrize("kind", ALL)
def test_scales_that_are_no_numbers_are_told_by_file_and_tensor_before_weights_are_read(kind: str, tmp_path: Path):
    whole = one_of(kind)
    with np.errstate(invalid="ignore"):
        check_scales(bare(written(whole, tmp_path)))
    for name, array in whole.tensors.items():
        codes = prod(array.shape) * array.itemsize > ROWS * COLUMNS // 8 or (kind, name) == ("bnb-fp4", "m.weight")
        if codes or name.endswith(NOT_READ) or (bad := spoiled(array)) is None:
            continue
        with pytest.raises(CheckpointError, match="NaN or Inf") as caught:
            check_scales(bare(written(replace(whole, tensors=whole.tensors | {name: bad}), tmp_path)))
        assert caught.value.file == str(tmp_path / "model.safetensors")
        assert str(caught.value.tensor) in (name, "m.weight")  # bitsandbytes' table


def bare(tensors: Mapping[str, TensorSource]) -> list[TensorSource]:
    return [tensor.turned if isinstance(tensor, Turned) else tensor for tensor in tensors.values()]


@pytest.mark.parametrize("kind", ALL)
def test_damage_of_any_kind_raises_nothing_but_our_errors(kind: str, tmp_path: Path):
    rng = np.random.default_rng(crc32(kind.encode()))
    for _ in range(DAMAGES):
        made = one_of(kind)
        damaged(rng, made)
        with suppress(EasyDeLError):
            for tensor in written(made, tmp_path).values():
                tensor.read()
