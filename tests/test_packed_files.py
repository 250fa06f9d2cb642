"""Quantized matrices of every layout: read whole and by slices, and refused by name where they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packed_files import WRITERS, Packed
from safetensors.numpy import save_file

from easydel.checkpoint import open_checkpoint
from easydel.weights.coded import CodedTensor
from easydel.weights.formats import unpacked
from easydel.weights.sources import TensorSource

SLICES = 30


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
