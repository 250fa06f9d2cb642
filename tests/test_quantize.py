"""Rows of numbers stored as int8 with a scale each."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from easydel.quantize import quantize_rows, rounded_blocks


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_are_off_by_at_most_half_a_step(dtype: type):
    rows = (np.random.default_rng(0).normal(size=(5, 3, 97)) * np.logspace(-4, 2, 5)[:, None, None]).astype(dtype)
    values, scales = quantize_rows(rows)
    assert values.dtype == np.int8
    assert scales.shape == (5, 3)
    assert np.all(np.abs(values).max(axis=-1) == 127)
    wanted = rows.astype(np.float64)
    assert np.all(np.abs(values * scales[..., None].astype(np.float64) - wanted) <= 0.5001 * scales[..., None])


def test_halves_go_to_the_even_neighbour_as_in_ieee():
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]], np.float32)
    assert quantize_rows(rows)[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


@pytest.mark.parametrize("top", [0.0, 1e-45, 1e-38, 3e-37, 3.4e38])
def test_scales_are_finite_however_small_or_large_a_row_is(top: float):
    rows = np.array([[top, -top, top / 2]], np.float32)
    values, scales = quantize_rows(rows)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert np.abs(values * scales[:, None].astype(np.float64) - rows).max() <= 0.5001 * scales[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_so_and_leaves_others_alone(bad: float):
    values, scales = quantize_rows(np.array([[1, bad, 3], [1, 2, 3]], np.float32))
    with np.errstate(invalid="ignore"):
        restored = values * scales[:, None]
    assert not np.isfinite(restored[0]).any()
    assert np.isfinite(restored[1]).all()


def test_what_is_quantized_is_left_as_it_was():
    rows = np.array([[1.0, 2.0, -3.0]], np.float32)
    quantize_rows(rows)
    assert rows.tolist() == [[1.0, 2.0, -3.0]]


def test_a_step_by_least_squares_is_closer_than_rounding_to_equal_steps():
    rows = np.random.default_rng(0).normal(size=(50, 640)).astype(np.float32)
    rows[0, :64], rows[1, 64] = 0, 1e-42
    codes, scales = rounded_blocks(rows, 64)
    assert (codes.dtype, codes.min(), codes.max()) == (np.int8, -8, 7)
    assert (scales.dtype, scales.shape) == (ml_dtypes.bfloat16, (50, 10))
    assert np.all(codes[0, :64] == 0)
    blocks, values = rows.reshape(50, 10, 64), codes.reshape(50, 10, 64) * scales.astype(np.float32)[..., None]
    steps = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), 1e-9) / 7
    nearest = np.rint(blocks / steps) * steps
    assert np.square(values - blocks).mean() < 0.73 * np.square(nearest - blocks).mean()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_has_a_scale_that_tells(bad: float):
    rows = np.ones((2, 32), np.float32)
    rows[1, 20] = bad
    assert np.isfinite(rounded_blocks(rows, 16)[1].astype(np.float32)).tolist() == [[True, True], [True, False]]
