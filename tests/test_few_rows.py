"""The TPU kernel for few rows and codes of 4 or 8 bits: the choice of it, and its results, interpreted on CPUs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from coded_files import NF4
from foretold import built, llama, made_by, needs_libtpu, read_from_memory
from jax.sharding import NamedSharding, PartitionSpec as P

import easydel.ops.coded as coded
import easydel.ops.few_rows as few_rows
import easydel.ops.few_rows_of_groups as few_rows_of_groups
import easydel.ops.few_rows_tiles as few_rows_tiles
from easydel.aot.hlo import cycles
from easydel.aot.topology import topology_mesh
from easydel.aot.tracing import placed_shapes, trace_step
from easydel.forms import FACTOR, OFFSET, SCALE, Form, by_rows, floats_of, packed
from easydel.ops.coded import Coded
from easydel.ops.few_rows import multiply, takes
from easydel.ops.ragged import ragged_dot
from easydel.ops.split_product import SplitProduct
from easydel.quantize import make_int4, make_int8
from easydel.sharding import make_mesh

INT4, UINT4, FP4 = (np.dtype(kind) for kind in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn))
INT8, UINT8, FP8 = (np.dtype(kind) for kind in (np.int8, np.uint8, ml_dtypes.float8_e4m3fn))
FP8_WIDE = np.dtype(ml_dtypes.float8_e5m2)
FORMS = {
    "int4": (Form(INT4, (1, 64)), 8),
    "int4 of rows that are not filled up": (Form(INT4, (1, 256)), 3),
    "zeros": (Form(UINT4, (1, 128), shift="zero"), 16),
    "offsets": (Form(UINT4, (1, 32), shift="offset"), 8),
    "NF4": (Form(UINT4, (1, 64), NF4), 8),
    "FP4 with a factor": (Form(FP4, (1, 16), extra=(FACTOR,)), 8),
    "int4 of whole rows": (by_rows(INT4, 512), 8),
    "zeros of several rows": (Form(UINT4, (2, 128), shift="zero"), 8),
    "int8 of whole rows": (by_rows(INT8, 512), 8),
    "int8 in blocks of columns": (Form(INT8, (1, 32)), 3),
    "bytes with zeros": (Form(UINT8, (1, 256), shift="zero"), 8),
    "float8 in blocks of rows and columns": (Form(FP8, (128, 128)), 8),
    "float8 with a factor": (Form(FP8, (1, 16), extra=(FACTOR,)), 8),
}
CHIP = "TPU v5 lite"


def matrix_of(form: Form, rows: int = 256, columns: int = 512, seed: int = 0) -> tuple[Coded, np.ndarray]:
    """A matrix by codes, and its floats."""
    rng = np.random.default_rng(seed)
    signed, half = np.issubdtype(form.code, np.signedinteger) or form.code == INT4, 1 << (form.bits - 1)
    codes = rng.integers(-half if signed else 0, half if signed else 2 * half, (rows, columns)).astype(form.code)
    if form.code in (FP8, FP8_WIDE):
        codes = rng.normal(0, 20, codes.shape).astype(form.code)
    scales = rng.uniform(0.01, 0.1, form.scales_shape((rows, columns))).astype("bfloat16")
    arrays = {"": packed(codes, form), SCALE: scales}
    if form.extra:
        arrays[FACTOR] = np.full((), 0.7, np.float32)
    if form.shift:
        arrays[OFFSET] = rng.integers(0, 16, arrays[SCALE].shape).astype(np.float32)
    parts = (jnp.asarray(arrays[end]) if end in arrays else None for end in (OFFSET, FACTOR))
    return Coded(jnp.asarray(arrays[""]), jnp.asarray(arrays[SCALE]), *parts, form=form), floats_of(arrays, form)


@pytest.mark.parametrize("kept", [few_rows.KEPT, 0])
def test_tiles_of_rows_and_of_their_bytes_add_up(kept: int, monkeypatch: pytest.MonkeyPatch):
    """Of one matrix, and of each group's, in two by two tiles; the table has signs that its highest bit turns round."""
    monkeypatch.setattr(few_rows, "KEPT", kept)
    monkeypatch.setattr(few_rows_tiles, "TALL", 256)
    monkeypatch.setattr(few_rows_tiles, "WIDE", 128)
    table = tuple(range(-8, 0)) + tuple(range(8, 0, -1))
    matrices, floats = zip(*(matrix_of(Form(UINT4, (1, 128), table), 512, 512, seed) for seed in (0, 1)), strict=True)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 512)), jnp.bfloat16)
    assert few_rows_tiles.tile_of(matrices[0]) == (256, 128)
    one = multiply(x, matrices[0], interpret=True)
    kernel = jax.tree.map(lambda *parts: jnp.stack(parts), *matrices)
    each = few_rows_of_groups.product(x, kernel, jnp.asarray([3, 5]), interpret=True)
    wide = np.asarray(x, np.float32)
    for found, expected in ((one, wide @ floats[0].T), (each, np.r_[wide[:3] @ floats[0].T, wide[3:] @ floats[1].T])):
        assert np.abs(np.asarray(found, np.float32) - expected).max() < 2**-8 * np.abs(expected).max()


@pytest.mark.parametrize("name", FORMS)
def test_products_and_gradients_equal_those_of_floats(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_rows, "multiply", partial(multiply, interpret=True))
    form, rows = FORMS[name]
    matrix, floats = matrix_of(form)
    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.normal(size=(rows, size)), jnp.bfloat16) for size in floats.shape[::-1])
    assert takes(rows, x.dtype, matrix, CHIP)
    sums = few_rows._of_codes(x, matrix, jnp.float32, interpret=True)
    table = tuple(np.asarray(form.table, jnp.bfloat16).astype(float).tolist())
    arrays = {"": matrix.codes, SCALE: matrix.scales} | ({} if matrix.shifts is None else {OFFSET: matrix.shifts})
    bare = replace(form, table=table, extra=())
    scaled = np.asarray(x, np.float64) @ floats_of({end: np.asarray(part) for end, part in arrays.items()}, bare).T
    np.testing.assert_allclose(sums, scaled, atol=3e-6 * np.abs(scaled).max(), err_msg="as exact as float32")
    y, pull = jax.vjp(lambda x: coded._product_of_few(None, x, matrix), x)
    expected = np.asarray(x, np.float32) @ floats.T
    rounded = 2**-9 if form.table else 1e-5  # entries of a table are bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-8, atol=rounded * np.abs(expected).max())
    theirs = jax.vjp(lambda x: coded._product(x, matrix, precision=None), x)[1](dy)
    np.testing.assert_array_equal(pull(dy)[0], theirs[0])


def test_each_device_of_a_mesh_multiplies_with_its_part(monkeypatch: pytest.MonkeyPatch):
    """In float32: over a mesh of CPUs XLA has no products of bfloat16 numbers that are added up in float32."""
    times = few_rows_tiles._times
    monkeypatch.setattr(
        few_rows_tiles, "_times", lambda x, y, dim: times(x.astype(jnp.float32), y.astype(jnp.float32), dim)
    )
    mesh, rng = make_mesh((1, 2, 4, 1)), np.random.default_rng(1)
    matrix, floats = matrix_of(Form(UINT4, (1, 64), shift="zero"), 256, 1024)
    x = jnp.asarray(rng.normal(size=(2, 1, 1024)), jnp.bfloat16)
    apart = SplitProduct.of(mesh, "dp", x.shape, matrix, P("fsdp", "tp"), always=True)
    assert apart is not None

    def product(x: jax.Array, matrix: Coded) -> jax.Array:
        assert matrix.shape == (128, 256)
        return multiply(x.reshape(-1, x.shape[-1]), matrix, interpret=True).reshape(*x.shape[:-1], -1)

    y = jax.jit(partial(apart, product))(x, matrix)
    expected = np.asarray(x, np.float32) @ floats.T
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-6, atol=2**-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("expected", "form", "changes"),
    [
        (True, Form(INT4, (1, 64)), {}),
        (True, Form(UINT4, (1, 128), shift="zero"), {"rows": 64}),
        (False, Form(INT4, (1, 64)), {"rows": 65}),
        (False, Form(INT4, (1, 64)), {"dtype": jnp.float32}),
        (True, Form(INT4, (1, 64)), {"outputs": 128}),
        (False, Form(INT4, (1, 64)), {"outputs": 384}),
        (False, Form(INT4, (1, 64)), {"outputs": 640}),
        (True, Form(FP4, (1, 16)), {"outputs": 16384, "inputs": 53248}),
        (False, Form(FP4, (1, 16)), {"inputs": 1 << 17}),
        (False, Form(INT4, (1, 64)), {"inputs": 192}),
        (False, Form(INT4, (1, 48)), {"inputs": 768}),
        (True, Form(INT4, (2, 64)), {}),
        (False, Form(INT4, (2, 64), step=16), {}),
        (True, Form(UINT4, (1, 64), NF4), {}),
        (True, Form(FP4, (1, 32)), {}),
        (False, Form(FP4, (1, 32)), {"chip": "TPU v4"}),
        (False, Form(FP4, (1, 32)), {"chip": "TPU v4 lite"}),
        (True, Form(INT4, (1, 64)), {"chip": "TPU v4"}),
        (False, Form(INT4, (1, 64)), {"chip": ""}),
        (False, Form(INT4, (16, 1)), {}),
        (True, by_rows(INT4, 256), {"rows": 256}),
        (False, by_rows(INT4, 256), {"rows": 257}),
        (True, by_rows(INT8, 256), {"rows": 64}),
        (True, by_rows(INT8, 256), {"outputs": 16032}),
        (False, by_rows(INT8, 256), {"outputs": 500}),
        (False, Form(INT4, (1, 64)), {"outputs": 16032}),
        (False, by_rows(INT8, 256), {"rows": 65}),
        (False, by_rows(INT8, 256), {"chip": "TPU v5"}),
        (True, by_rows(INT8, 256), {"chip": "TPU v6 lite"}),
        (True, by_rows(FP8, 256), {}),
        (False, by_rows(FP8, 256), {"chip": "TPU v6 lite"}),
        (True, by_rows(FP8, 256), {"chip": "TPU7x"}),
        (True, Form(FP8, (128, 128)), {"chip": "TPU v5"}),
        (False, Form(INT4, (1, 64)), {"chip": "TPU v3"}),
        (False, Form(FP8, (128, 128)), {"chip": "TPU v2"}),
        (True, Form(INT8, (1, 64), extra=(FACTOR,)), {}),
        (False, Form(INT8, (1, 64), shift="offset", extra=(FACTOR,)), {}),
        (True, Form(INT8, (1, 64)), {"rows": 128}),
        (False, Form(INT8, (1, 64)), {"rows": 129}),
        (False, Form(INT8, (1, 96)), {"inputs": 768}),
        (True, Form(FP8, (128, 128)), {"rows": 256, "inputs": 2048}),
        (False, Form(UINT8, (1, 64), tuple(map(float, range(256)))), {}),
    ],
)
def test_what_is_multiplied_by_the_kernel(expected: bool, form: Form, changes: dict[str, Any]):
    sizes: dict[str, Any] = {"rows": 8, "outputs": 256, "inputs": 256, "dtype": jnp.bfloat16, "chip": CHIP} | changes
    shape = (sizes["outputs"], sizes["inputs"])
    dims = form.parts(shape)
    dtypes = dict.fromkeys(dims, jnp.bfloat16) | {"": form.held}
    parts = {end: jax.ShapeDtypeStruct(dims[end], dtypes[end]) for end in dims}
    codes, scales, shifts, factors = (parts.get(end) for end in ("", SCALE, OFFSET, FACTOR))
    assert (
        takes(sizes["rows"], sizes["dtype"], Coded(codes, scales, shifts, factors, form=form), sizes["chip"])
        == expected
    )


@needs_libtpu
@pytest.mark.parametrize("dims", [(1, 1, 1, 1), (1, 2, 2, 1)], ids=str)
def test_a_step_reads_codes_at_their_own_bits(dims: tuple[int, ...]):
    """Each chip multiplies with its part of a kernel."""
    mesh = topology_mesh("v5e:1x1" if max(dims) == 1 else "v5e:2x2", dims)
    sizes = {"hidden_size": 2048, "intermediate_size": 5632}
    config = llama(**sizes, num_hidden_layers=1, num_attention_heads=16, vocab_size=512)
    found = []
    for store in (lambda model: None, lambda model: make_int4(model, None), lambda model: make_int8(model, None)):
        model, _ = built(config, mesh)
        store(model)
        compiled: Any = trace_step(model, placed_shapes(model), 8, 128).lower().compile()
        text = compiled.as_text()
        counted = compiled.cost_analysis()["bytes accessed"]
        found.append((read_from_memory(text), counted, text.count('"tpu_custom_call"'), cycles(text)))
    (floats, counted, _, slow), *stored = found
    for share, (read, again, kernels, beside) in zip((0.33, 0.56), stored, strict=True):
        assert read < share * floats
        assert again < share * counted, "by XLA's own count, which has what is fetched ahead again where it is used"
        assert kernels == 8, "attention's four, the MLP's three, and the head"
        assert beside < slow, "what is not in the kernels"


@needs_libtpu
def test_bytes_of_stacked_layers_are_multiplied_where_they_lie():
    config = llama(hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, num_attention_heads=8, vocab_size=512)
    model, _ = built(config, topology_mesh("v5e:1x1", (1, 1, 1, 1)), scan_layers=True)
    make_int8(model, None)
    text = trace_step(model, placed_shapes(model), 8, 128).lower().compile().as_text()
    assert text is not None
    assert '"tpu_custom_call"' not in text
    kernels = {1024 * 1024, 1024 * 2816}
    assert not [made for made, size in made_by(text) if size in kernels], "none is copied out of its stack"


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
def test_the_kernels_compile_for_every_chip_that_looks_tables_up(topology: str):
    mesh = topology_mesh(topology, (1, 1, 1, 1))
    whole, chip = NamedSharding(mesh, P()), mesh.devices.flat[0].device_kind
    forms = [Form(UINT4, (1, 64), NF4), Form(FP4, (1, 16)), Form(UINT8, (1, 64)), Form(FP8, (128, 128))]
    matrices = [matrix_of(form, 512, 2048)[0] for form in (*forms, by_rows(INT8, 2048), by_rows(FP8_WIDE, 2048))]
    matrices.append(matrix_of(by_rows(INT8, 2048), 1000, 2048)[0])
    shapes: Any = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=whole),
        [jax.ShapeDtypeStruct((8, 2048), jnp.bfloat16), *matrices],
    )
    assert all(few_rows.can(8, jnp.bfloat16, matrix, chip) for matrix in matrices)

    def all_products(x: jax.Array, *matrices: Coded) -> list[jax.Array]:
        experts = (jax.tree.map(lambda part: part[None], matrix) for matrix in matrices)
        rows = jnp.full(1, x.shape[0])
        grouped = [ragged_dot(x, one, rows, chip=chip) for one in experts]
        return [multiply(x, matrix) for matrix in matrices] + grouped

    text = jax.jit(all_products).lower(*shapes).compile().as_text()
    assert text is not None
    assert text.count('"tpu_custom_call"') == 2 * len(matrices)


GROUPS = {
    "int4": (Form(INT4, (1, 64)), [3, 0, 9, 1]),
    "NF4, one row": (Form(UINT4, (1, 128), NF4), [0, 0, 0, 1]),
    "FP4 with factors": (Form(FP4, (1, 16), extra=(FACTOR,)), [7, 2, 0, 0]),
    "no rows": (Form(INT4, (1, 256)), [0, 0, 0, 0]),
    "few of many groups": (Form(FP8, (128, 128)), [0, 0, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0]),
    "zeros of few of many groups": (Form(UINT4, (1, 64), shift="zero"), [0, 0, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0]),
    "zeros": (Form(UINT4, (1, 64), shift="zero"), [3, 0, 9, 1]),
    "offsets of bytes": (Form(UINT8, (1, 64), shift="offset"), [3, 5, 0, 1]),
    "float8 in blocks of rows and columns": (Form(FP8, (128, 128)), [3, 0, 9, 1]),
    "int8 of whole rows": (by_rows(INT8, 512), [0, 2, 0, 6]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_rows_are_multiplied_with_the_matrix_of_their_group(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_rows_of_groups, "product", partial(few_rows_of_groups.product, interpret=True))
    form, sizes = GROUPS[name]
    made = [matrix_of(form, 256, 512, seed) for seed in range(len(sizes))]
    kernel = jax.tree.map(lambda *parts: jnp.stack(parts), *(matrix for matrix, _ in made))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(max(sum(sizes) + 3, 8), 512)), jnp.bfloat16)
    assert few_rows_of_groups.takes(x, kernel, CHIP)
    y = few_rows_of_groups.product(x, kernel, jnp.asarray(sizes))[: sum(sizes)]
    if kernel.scales_outputs:  # `ragged_dot` multiplies by them
        y = y.astype(jnp.float32) * kernel.scales[np.repeat(np.arange(len(sizes)), sizes)]
    rows = np.split(np.asarray(x, np.float32), np.cumsum(sizes))
    expected = np.concatenate([part @ floats.T for part, (_, floats) in zip(rows, made, strict=False)])
    largest, rounded = np.abs(expected).max(initial=0), 2**-9 if form.table else 1e-5
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-8, atol=rounded * largest)


@pytest.mark.parametrize("form", [by_rows(INT8, 256), Form(UINT8, (1, 64), shift="zero")], ids=["rows", "zeros"])
def test_the_last_tile_of_bytes_may_stand_out(form: Form):
    made = [matrix_of(form, 1000, 256, seed) for seed in (0, 1)]
    assert few_rows_tiles.tile_of(made[0][0]) == (few_rows_tiles.TALL, 256)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 256)), jnp.bfloat16)
    kernel = jax.tree.map(lambda *parts: jnp.stack(parts), *(matrix for matrix, _ in made))
    each = few_rows_of_groups.product(x, kernel, jnp.asarray([3, 5]), interpret=True).astype(jnp.float32)
    if kernel.scales_outputs:
        each = each * kernel.scales[np.repeat((0, 1), (3, 5))]
    wide = np.asarray(x, np.float32)
    expected = [wide @ floats.T for _, floats in made]
    for found, correct in (
        (multiply(x, made[0][0], interpret=True), expected[0]),
        (each, np.r_[expected[0][:3], expected[1][3:]]),
    ):
        np.testing.assert_allclose(
            np.asarray(found, np.float32), correct, rtol=2**-8, atol=1e-5 * np.abs(correct).max()
        )


def test_a_scale_that_is_infinite_stays_in_its_group():
    made = [matrix_of(Form(INT4, (1, 64)), seed=seed)[0] for seed in (0, 1)]
    kernel = jax.tree.map(lambda *parts: jnp.stack(parts), *made)
    broken = replace(kernel, scales=kernel.scales.at[0, 0, 0].set(jnp.inf))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 512)), jnp.bfloat16)
    whole, found = (few_rows_of_groups.product(x, one, jnp.asarray([3, 5]), interpret=True) for one in (kernel, broken))
    assert not np.isfinite(np.asarray(found[:3], np.float32)).all()
    np.testing.assert_array_equal(found[3:], whole[3:])


def test_codes_in_another_dtype_are_not_taken():
    matrix, _ = matrix_of(Form(FP8, (128, 128)))
    assert takes(8, jnp.bfloat16, matrix, CHIP)
    assert not takes(8, jnp.bfloat16, matrix.sliceable(), CHIP), "the kernel would take its bits for integers"


def test_experts_are_in_the_kernel_while_they_have_few_rows():
    kernel = jax.tree.map(lambda part: jnp.stack([part] * 4), matrix_of(Form(INT4, (1, 64)))[0])
    for rows, chip, expected in ((32, CHIP, True), (33, CHIP, False), (8, "", False)):
        assert few_rows_of_groups.takes(jnp.zeros((rows, 512), jnp.bfloat16), kernel, chip) == expected
