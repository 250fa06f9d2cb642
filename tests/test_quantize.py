"""Rows of numbers stored as int8 with a scale each."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from easydel.quantize import quantize_rows


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
