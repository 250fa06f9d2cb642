"""A few rows of a table on a TPU: its bits, its gradients, and nothing else of the table read."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from foretold import BF16, made_by, needs_libtpu
from jax.sharding import NamedSharding, PartitionSpec as P

import easydel.ops.few_rows_of_table as few_rows_of_table
import easydel.ops.lookup as lookup
from easydel.aot.topology import topology_mesh
from easydel.forms import Form, by_rows
from easydel.layers.context import Context
from easydel.layers.ngram_table import NGramTable
from easydel.ops.coded import Coded
from easydel.ops.lookup import Split, look_up
from easydel.policy import Policy
from easydel.sharding import make_mesh

INT8, INT4, FLOAT8 = (np.dtype(kind) for kind in (np.int8, ml_dtypes.int4, ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "float8_e4m3fn"])
@pytest.mark.parametrize("width", [20, 280, 384])
def test_rows_have_the_bits_of_the_table(dtype: str, width: int):
    """Those that lie in rows and, of other widths, in columns; in several tiles, the last of which is not filled."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1000, width)) * 50).astype(dtype)
    table = table.at[5].set(-jnp.zeros(width, dtype)) if dtype == "bfloat16" else table
    index = np.asarray([[999, 0, 31, 5, 7], [128, 127, 500, 33, 999]])
    found = few_rows_of_table.look_up(table, jnp.asarray(index), interpret=True)
    np.testing.assert_array_equal(found, np.asarray(table).view(found.dtype)[index])


@pytest.mark.parametrize("dims", [(1, 1, 1, 1), (1, 2, 4, 1)], ids=str)
def test_rows_and_gradients_are_those_of_a_look_up_by_xla(dims: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_rows_of_table, "look_up", partial(few_rows_of_table.look_up, interpret=True))
    split = Split(make_mesh(dims), "tp", ("fsdp", "sp"), (("dp", "fsdp"), "sp"))
    index = jnp.asarray([[3, 4000, -1, 2000], [999, 0, 3, 3]])
    random = np.random.default_rng(1)
    table, weights = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((4000, 256), (2, 4, 256)))

    def value(rows_of: Any, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum((rows := rows_of(table, index)) * weights), rows

    expected = jax.value_and_grad(partial(value, partial(look_up, split=None)), has_aux=True)(table)
    monkeypatch.setattr(lookup, "_rows", lambda table, index, split: lookup._few(table, index))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, tpu: tpu(*args))
    found = jax.jit(jax.value_and_grad(partial(value, partial(look_up, split=split)), has_aux=True))(table)
    jax.tree.map(np.testing.assert_array_equal, found[0][1], expected[0][1])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("expected", "rows", "shape", "dtype"),
    [
        (True, 1, (1024, 256), "int8"),
        (True, 15, (1024, 256), "int8"),
        (False, 16, (1024, 256), "int8"),  # half of the table
        (False, 8, (32000, 256), "bfloat16"),  # XLA looks it up well
        (True, 64, (32000, 256), "uint8"),
        (False, 65, (32000, 256), "uint8"),
        (True, 64, (32000, 64), "float32"),
        (False, 1, (32000, 256), "float16"),
        (False, 1, (1 << 20, 1 << 17), "int8"),
        (True, 8, (32000, 64), "bfloat16"),
        (True, 8, (32000, 20), "int8"),
        (False, 8, (32000, 25), "bfloat16"),  # no whole words
        (False, 8, (1200, 64), "bfloat16"),
        (False, 8, (5000, 1016), "bfloat16"),  # lies in rows
        (False, 8, (128256, 16300), "bfloat16"),
    ],
)
def test_what_is_looked_up_by_the_kernels(expected: bool, rows: int, shape: tuple[int, int], dtype: str):
    assert few_rows_of_table.takes(rows, jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))) == expected


@needs_libtpu
@pytest.mark.parametrize("dims", [(1, 1, 1, 1), (1, 2, 4, 1)], ids=str)
@pytest.mark.parametrize("form", [by_rows(INT8, 2048), by_rows(FLOAT8, 2048), Form(INT4, (1, 32))], ids=str)
def test_a_few_rows_are_read_without_the_table(form: Form, dims: Any):
    """It is neither made anew nor fetched into fast memory, and nor are the scales of its blocks."""
    mesh = topology_mesh("v5e:1x1" if max(dims) == 1 else "v5e:2x4", dims)
    split, shape = Split(mesh, "tp", ("fsdp", "sp"), (("dp", "fsdp"), "sp")), (1 << 16, 2048)
    kinds = [jnp.int8 if form.bits == 4 else form.code, jnp.bfloat16]
    parts = zip(form.parts(shape).values(), kinds, strict=True)
    arrays: Any = [placed(mesh, dims, kind, "tp", "fsdp") for dims, kind in parts]
    table = Coded(*arrays, form=form)

    def rows_of(table: Coded, index: jax.Array) -> jax.Array:
        return table.rows(index, partial(look_up, split=split)).whole(jnp.bfloat16)

    for batch in (1, 8):
        compiled: Any = jax.jit(rows_of).lower(table, placed(mesh, (batch, 1), jnp.int32)).compile()
        largest = shape[0] * shape[1] // mesh.size // 64
        assert [made for made in made_by(compiled.as_text()) if made[1] >= largest] == []
        assert compiled.cost_analysis()["bytes accessed"] < largest * 16, "a quarter of the bytes of a part"


@needs_libtpu
def test_parts_of_a_table_of_ngrams_are_not_put_together():
    mesh = topology_mesh("v5e:1x1", (1, 1, 1, 1))
    record = NGramTable(97, order=3, heads=2, dim=512, base=20000, divisor=8, parts=7, index=0, seed=1, separator=2)
    definition, parameters = nnx.split(record.build(Policy(dtype=BF16, param_dtype=BF16)))
    shapes = jax.tree.map(lambda leaf: placed(mesh, leaf.shape, leaf.dtype), parameters)

    def vectors(parameters: Any, ids_BT: jax.Array) -> jax.Array:
        return nnx.merge(definition, parameters)(Context(jnp.zeros_like(ids_BT), ids_BT=ids_BT), None)[0]

    compiled: Any = jax.jit(vectors).lower(shapes, placed(mesh, (8, 1), jnp.int32)).compile()
    assert record.part % 8 != 0
    assert [made for made in made_by(compiled.as_text()) if made[1] > record.part] == []


def placed(mesh: Any, shape: tuple[int, ...], dtype: Any, *axes: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes[: len(shape)])))
