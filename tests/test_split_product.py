"""Products with split columns: those of the whole matrix, while no more than the sums of real rows travels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coded_files import Made
from jax.sharding import PartitionSpec as P

from easydel.forms import CODES, FACTOR, Form, by_rows
from easydel.ops.coded import Coded
from easydel.ops.split_product import SplitProduct
from easydel.sharding import make_mesh

OUT, IN = 48, 64
FORMS = {
    "floats": None,
    "int8": by_rows(CODES["int8"], IN),
    "4 bits": Form(CODES["uint4"], (1, 8), (), "zero", extra=(FACTOR,)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("dims", "rows", "split"),
    [
        ((1, 8, 1, 1), 1, P("tp", ("fsdp", "sp"))),
        ((2, 2, 1, 2), 4, P(None, ("fsdp", "sp"))),
        ((1, 2, 4, 1), 2, P("fsdp", "tp")),
    ],
    ids=str,
)
def test_a_product_and_its_gradients_are_those_of_the_whole_matrix(dims: Any, rows: int, split: P, form: Form | None):
    mesh, random = make_mesh(dims), np.random.default_rng(0)
    x, weights = (jnp.asarray(random.normal(size=(rows, 1, size)), jnp.float32) for size in (IN, OUT))
    floats = jnp.asarray(random.normal(size=(OUT, IN)), jnp.float32)
    matrix = floats if form is None else Made.random(form, (OUT, IN), random).on_device()
    apart = SplitProduct.of(mesh, "dp", x.shape, matrix, split)
    assert apart is not None

    def product(x: jax.Array, matrix: Any) -> jax.Array:
        return matrix.times(x, None, split=True) if isinstance(matrix, Coded) else jnp.dot(x, matrix.T)

    def value(x: jax.Array, matrix: Any, whole: bool) -> tuple[jax.Array, jax.Array]:
        y = product(x, matrix) if whole else apart(product, x, matrix)
        return jnp.sum(y * weights), y

    both = jax.jit(jax.value_and_grad(value, (0, 1) if form is None else 0, has_aux=True), static_argnums=2)
    (_, y), gradients = both(x, matrix, False)
    (_, expected), others = both(x, matrix, True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda own, other: np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5), gradients, others)


def test_a_matrix_that_no_axis_cuts_alike_is_left_to_xla():
    mesh, by_columns = make_mesh((1, 8, 1, 1)), P(None, "fsdp")
    wide = Made.random(Form(CODES["int8"], (8, IN)), (OUT, IN), np.random.default_rng(0)).on_device()
    assert SplitProduct.of(mesh, "dp", (1, 1, IN), wide, by_columns) is None, "a scale is for whole rows"
    whole = jnp.zeros((OUT, IN))
    assert SplitProduct.of(mesh, "dp", (1, 1, IN), whole, P("fsdp", "tp")) is None, "tp is one device"


def test_rows_of_blocks_that_lie_apart_are_split_only_between_blocks():
    mesh, by_both = make_mesh((1, 2, 4, 1)), P("fsdp", "tp")
    for step, splits in ((6, True), (12, False)):
        form = Form(CODES["uint4"], (4, 1), (), "zero", step=step)
        matrix = Made.random(form, (OUT, IN), np.random.default_rng(0)).on_device()
        assert (SplitProduct.of(mesh, "dp", (2, 1, IN), matrix, by_both) is not None) == splits
