"""GGUF's blocks as codes with scales: the same numbers as decoded blocks, for any slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from easydel.checkpoint.blocks import block_layout
from easydel.checkpoint.tensor import Tensor, row_major
from easydel.weights.coded import CodedTensor
from easydel.weights.gguf import HFTensor
from easydel.weights.gguf_codes import LAYOUTS, by_codes
from easydel.weights.gguf_tensors import AllRows
from easydel.weights.sources import Turned

HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # float16 of a block, if not 0


def random_tensor(kind: str, shape: tuple[int, ...], file: Path) -> Tensor:
    """Writes blocks of random bits whose scales are finite."""
    rng, (elements, size) = np.random.default_rng(7), block_layout(kind)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), np.uint8)
    for place in HALVES.get(kind, (0,)):
        blocks[..., place : place + 2] = rng.normal(size=(*blocks.shape[:-1], 1)).astype("<f2").view(np.uint8)
    file.write_bytes(blocks.tobytes())
    return Tensor("t", shape, np.dtype(np.float32), file, 0, row_major(blocks.shape[:-1], size), encoding=kind)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_codes_and_scales_are_the_decoded_numbers_bit_for_bit(kind: str, tmp_path: Path):
    rng = np.random.default_rng(3)
    rows = rng.permutation(12)
    stored = {
        "experts": HFTensor(random_tensor(kind, (2, 5, 512), tmp_path / "experts")),
        "rotary": HFTensor(random_tensor(kind, (12, 512), tmp_path / "rotary"), rows=rows),
    }
    found = by_codes(stored)
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        assert isinstance(tensor, CodedTensor)
        whole = stored[name].read()
        np.testing.assert_array_equal(CodedTensor.read(tensor), whole)
        for _ in range(12):
            ends = (sorted(rng.integers(0, size + 1, 2).tolist()) for size in tensor.shape)
            index = tuple(slice(start, stop, int(rng.integers(1, 4))) for start, stop in ends)
            np.testing.assert_array_equal(CodedTensor.read(tensor, index), whole[index])


def test_other_tensors_stay_as_they_are(tmp_path: Path):
    norm = HFTensor(Tensor("n", (32,), np.dtype(np.float32), tmp_path / "n", 0, (4,)))
    other = HFTensor(random_tensor("Q3_K", (4, 256), tmp_path / "other"))
    raised = HFTensor(random_tensor("Q8_0", (4, 64), tmp_path / "raised"), add=-1.0)
    stored = {"norm": norm, "other": other, "raised": raised}
    assert by_codes(stored) == stored


def test_matrices_that_lie_otherwise_in_a_file_have_codes_as_they_lie(tmp_path: Path):
    experts = HFTensor(random_tensor("Q8_0", (2, 4, 64), tmp_path / "experts"), transposed=True)
    found = by_codes({"experts": AllRows(experts)})["experts"]
    assert isinstance(found, AllRows)
    assert isinstance(found.reshaped, Turned)
    assert isinstance(found.reshaped.turned, CodedTensor)
    np.testing.assert_array_equal(found.read(), experts.read().reshape(128, 4))
