"""Matrices that are stored by codes: products, and codes and scales through any expression over quantized tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coded_files import FORMS, NF4, Made

import easydel.ops.coded
from easydel.forms import BESIDE, CODES, FACTOR, GAIN, ORDER, Form, packed, unpacked
from easydel.ops.coded import Coded
from easydel.ops.lookup import look_up
from easydel.ops.ragged import ragged_dot
from easydel.weights.coded import CodedTensor
from easydel.weights.expressions import Expression, Index, Reshape, Rows, Source, Stack, Transpose
from easydel.weights.keep import NotKept, keep, kept_as
from easydel.weights.plan import Plan

KINDS = [
    *(Form(code, block) for code, block in zip(CODES.values(), [(1, 96), (4, 24)] * 5, strict=False)),
    Form(CODES["uint4"], (1, 8), NF4),
    Form(CODES["uint4"], (1, 96), (), "zero"),
    Form(CODES["uint8"], (1, 32), (), "offset"),
    Form(CODES["int4"], (8, 4), (), "offset"),
    Form(CODES["uint4"], (4, 1), (), "zero", step=10),
    Form(CODES["float4_e2m1fn"], (1, 16), extra=(FACTOR, ORDER, GAIN)),
]


@pytest.mark.parametrize("form", KINDS, ids=lambda form: f"{form.code}-{form.block}-{form.shift}")
def test_products_look_ups_and_gradients_are_those_of_the_floats(form: Form, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(easydel.ops.coded, "BLOCK_BYTES", 8 * 96 * 4)  # several blocks, the last one smaller
    rng = np.random.default_rng(0)
    made = Made.random(form, (44 if form.block[0] == 1 else 40, 96), rng)
    x, index = rng.standard_normal((2, 3, 96)).astype(np.float32), np.array([[3, 39], [0, 7]])

    rows_of = partial(look_up, split=None)

    @jax.jit
    def computed(x: jax.Array, matrix: Coded) -> Any:
        y, back = jax.vjp(lambda x: matrix.times(x, None, split=False), x)
        return y, back(y)[0], matrix.times(x, None, split=True), matrix.rows(index, rows_of).whole(x.dtype)

    y, gradient, at_once, rows = computed(x, made.on_device())
    wanted = x @ made.floats.T
    np.testing.assert_array_equal(unpacked(packed(made.codes, form), form), made.codes)
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    np.testing.assert_allclose(at_once, wanted, atol=2e-5)
    np.testing.assert_allclose(gradient, wanted @ made.floats, atol=2e-4)
    np.testing.assert_allclose(rows, made.floats[index], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["k_proj", "v_proj", "up_proj"])
def test_grouped_products_are_those_of_the_floats(name: str):
    rng = np.random.default_rng(0)
    made = Made.random(FORMS[name], (3, 32, 64), rng)
    x, sizes = rng.standard_normal((7, 64)).astype(np.float32), jnp.array([4, 0, 2])

    @jax.jit
    def computed(x: jax.Array, matrix: Coded) -> Any:
        y, back = jax.vjp(lambda x: ragged_dot(x, matrix, sizes), x)
        return y, back(y)[0]

    y, gradient = computed(x, made.on_device())
    wanted = np.concatenate([x[:4] @ made.floats[0].T, x[4:6] @ made.floats[2].T, np.zeros((1, 32))])
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    again = np.concatenate([wanted[:4] @ made.floats[0], wanted[4:6] @ made.floats[2], np.zeros((1, 64))])
    np.testing.assert_allclose(gradient, again, atol=2e-4)


@dataclass(frozen=True, eq=False)
class Whole(CodedTensor):
    """A coded tensor in memory, whose blocks may be larger than the matrix or stand out over its end."""

    name: str
    form: Form
    made: Made
    file: Path = Path("memory")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.made.codes.shape

    @property
    def nbytes(self) -> int:
        return self.made.codes.nbytes

    def codes(self, index: Index) -> np.ndarray:
        return self.made.codes[index]

    def scales(self, index: Index) -> np.ndarray:
        return self.made.scales[index]

    def shifts(self, index: Index) -> np.ndarray:
        assert self.made.shifts is not None
        return self.made.shifts[index]


def plan_of(expression: Expression, shape: tuple[int, ...], **tensors: Form) -> Plan:
    rng = np.random.default_rng(0)
    found = {name: (16, 48) if name < "m" else (2, 16, 48) for name in tensors}
    made = {name: Whole(name, form, Made.random(form, found[name], rng)) for name, form in tensors.items()}
    return Plan({"w": expression}, {"w": shape}, made, ())


def read(plan: Plan, path: str, dtype: Any, index: Index) -> np.ndarray:
    out = np.empty([part.stop - part.start for part in index], dtype)
    for copy in plan.expressions[path].copies(index, out):
        copy.out[...] = plan.tensors[copy.name].read(copy.index)
    return out


INT4, FP8, UINT8 = Form(CODES["int4"], (1, 16)), Form(CODES["float8_e4m3fn"], (8, 16)), Form(CODES["uint8"], (1, 48))
APART = Form(CODES["uint2"], (8, 1), step=2)
PICKED = np.array([3, 4, 5, 9, 8, 0, 2, 4])
EXPRESSIONS: dict[str, tuple[Plan, tuple[int, int]]] = {
    "tensor": (plan_of(Source("a"), (16, 48), a=FP8), (8, 16)),
    "selected rows": (plan_of(Rows(Source("a"), PICKED, 16), (8, 48), a=INT4), (1, 16)),
    "selected rows of blocks": (plan_of(Rows(Source("a"), PICKED, 16), (8, 48), a=FP8), (1, 16)),
    "transposed": (plan_of(Transpose(Source("a")), (48, 16), a=FP8), (16, 8)),
    "transposed, several in a byte": (
        plan_of(Transpose(Source("a")), (48, 16), a=replace(INT4, block=(4, 16), shift="zero")),
        (16, 4),
    ),
    "rows of a transposed one": (plan_of(Rows(Transpose(Source("a")), PICKED, 48), (8, 16), a=FP8), (1, 8)),
    "columns in another order": (
        plan_of(Rows(Source("a"), np.r_[24:48, 0:8], 48, -1), (16, 32), a=replace(UINT8, shift="offset")),
        (1, 32),
    ),
    "experts in one matrix": (plan_of(Reshape(Source("a"), (16, 48), (4, 4, 48)), (4, 4, 48), a=INT4), (1, 16)),
    "stacked": (
        plan_of(Stack((Source("a"), Source("b"))), (2, 16, 48), a=INT4, b=replace(INT4, block=(1, 24))),
        (1, 8),
    ),
    "stacked experts, some rows": (
        plan_of(Stack((Rows(Source("x"), PICKED, 16), Rows(Source("y"), PICKED, 16))), (2, 2, 8, 48), x=FP8, y=FP8),
        (1, 16),
    ),
    "transposed, blocks of one column": (plan_of(Transpose(Source("a")), (48, 16), a=INT4), (16, 1)),
    "rows that lie apart": (plan_of(Source("a"), (16, 48), a=APART), (8, 1)),
    "stacked, of rows that lie apart": (
        plan_of(Stack((Source("a"), Source("b"))), (2, 16, 48), a=APART, b=replace(APART, block=(4, 1))),
        (4, 1),
    ),
    "a block for all": (plan_of(Source("a"), (16, 48), a=replace(FP8, block=(16, 48))), (1, 48)),
}


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_codes_and_scales_of_any_part_are_read_through_the_parameters_own_expression(kind: str):
    plan, block = EXPRESSIONS[kind]
    shape = plan.shapes["w"]
    whole = tuple(slice(0, dim) for dim in shape)
    floats = read(plan, "w", np.float32, whole)
    stored = kept_as(plan, "w", (1,) * len(shape))
    assert stored.form.block == block
    for counts in ((1, 1), (2, 2)):
        stored = kept_as(plan, "w", (*[1] * (len(shape) - 2), *counts))
        kept = keep(plan, {"w": stored})
        dtypes = {"w": stored.form.held, "w_scale": stored.scale, "w_offset": stored.shift}
        arrays = {path: np.empty(dims, dtypes[path]) for path, dims in kept.shapes.items()}
        for path, array in arrays.items():
            *lead, rows, columns = (*array.shape, 1)[: len(shape)]
            for r in range(counts[0]):
                for c in range(counts[1] if array.ndim == len(shape) else 1):
                    height, width = rows // counts[0], columns // counts[1]
                    part = (slice(r * height, (r + 1) * height), slice(c * width, (c + 1) * width))
                    index = (*(slice(0, dim) for dim in lead), *part)[: array.ndim]
                    array[index] = read(kept, path, array.dtype, index)
        beside = (arrays.get(f"w{end}") for end in BESIDE)
        matrix = Coded(arrays["w"], *beside, form=stored.form)  # type: ignore[arg-type]
        np.testing.assert_allclose(matrix.whole(np.float32), floats, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("expression", "shape", "forms", "reason"),
    [
        (Rows(Source("a"), PICKED, 48, -1), (16, 8), {"a": INT4}, "columns are in another order"),
        (Reshape(Source("a"), (16, 48), (32, 24)), (32, 24), {"a": INT4}, r"\[16, 48\] is read as \[32, 24\]"),
        (Source("a"), (16, 48), {"a": replace(INT4, block=(1, 3))}, "2 codes of a byte are not in one block of 1 x 3"),
        (Transpose(Source("a")), (48, 16), {"a": APART}, "rows of its blocks lie apart"),
        (Rows(Source("a"), PICKED, 16), (8, 48), {"a": APART}, "blocks of 1 x 1 take as much memory"),
        (Stack((Source("a"), Source("b"))), (2, 16, 48), {"a": INT4, "b": FP8}, "int4 and float8_e4m3fn"),
        (Stack((Source("a"), Source("b"))), (2, 16, 48), {"a": APART, "b": replace(APART, step=1)}, "or rows apart"),
        (Source("a"), (16, 48), {"a": replace(FP8, block=(1, 4))}, "as much memory as 16-bit floats"),
    ],
)
def test_what_cannot_stay_by_codes_says_why(expression: Expression, shape: Any, forms: dict[str, Form], reason: str):
    with pytest.raises(NotKept, match=reason):
        kept_as(plan_of(expression, shape, **forms), "w", (1,) * len(shape))
