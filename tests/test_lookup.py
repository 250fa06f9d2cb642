"""Look-ups in split tables: the rows and gradients of a whole table, while the table stays where it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from easydel.aot.hlo import collectives
from easydel.ops.lookup import Split, look_up
from easydel.sharding import make_mesh

ROWS, FEATURES = 96, 48
TOKENS = (("dp", "fsdp"), "sp")


@pytest.mark.parametrize(
    ("dims", "columns", "shape"),
    [
        ((1, 8, 1, 1), ("fsdp", "sp"), (8, 5)),
        ((1, 4, 2, 1), ("fsdp", "sp"), (4, 3)),
        ((2, 2, 2, 1), ("fsdp", "sp"), (1, 7)),  # a single row: not split
        ((1, 2, 2, 2), ("fsdp", "sp"), (2, 3)),  # split over fsdp alone
        ((2, 2, 1, 2), ("sp", "fsdp"), (4, 6)),
        ((1, 2, 4, 1), "tp", (6,)),  # the axis of the rows
    ],
    ids=str,
)
def test_rows_and_gradients_equal_those_of_a_whole_table(dims: Any, columns: Any, shape: tuple[int, ...]):
    split = Split(make_mesh(dims), "tp", columns, TOKENS)
    random = np.random.default_rng(0)
    table = jnp.asarray(random.normal(size=(ROWS, FEATURES)), jnp.float32)
    index = jnp.asarray(random.integers(-3, ROWS + 3, shape))
    weights = jnp.asarray(random.normal(size=(*shape, FEATURES)), jnp.float32)

    def value(table: jax.Array, split: Split | None) -> tuple[jax.Array, jax.Array]:
        rows = look_up(table, index, split)
        return jnp.sum(rows * weights), rows

    (_, rows), by_table = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)(table, split)
    (_, expected), gradient = jax.value_and_grad(value, has_aux=True)(table, None)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(by_table, gradient, atol=1e-5)
    assert by_table.sharding.is_equivalent_to(NamedSharding(split.mesh, split.specs(table.shape, shape)[0]), 2)


@pytest.mark.parametrize("dims", [(1, 8, 1, 1), (1, 4, 2, 1)], ids=str)
def test_the_table_stays_and_so_does_its_gradient(dims: tuple[int, ...]):
    split = Split(make_mesh(dims), "tp", ("fsdp", "sp"), TOKENS)
    spec, tokens = split.specs((4096, FEATURES), (8, 2))
    table = jax.ShapeDtypeStruct((4096, FEATURES), jnp.float32, sharding=NamedSharding(split.mesh, spec))
    index = jax.ShapeDtypeStruct((8, 2), jnp.int32, sharding=NamedSharding(split.mesh, tokens))
    gradient = jax.jit(jax.grad(lambda table, index: jnp.sum(look_up(table, index, split) ** 2)))
    found = collectives(gradient.lower(table, index).compile().as_text(), split.mesh.shape)
    assert {"all-to-all"} <= {one.kind for one in found}
    assert [one for one in found if one.largest > 16 * FEATURES] == []
