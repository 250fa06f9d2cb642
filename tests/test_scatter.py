"""Sums that are scattered in steps: those of one step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from easydel.ops.scatter import in_steps
from easydel.sharding import make_mesh


@pytest.mark.parametrize(
    ("dims", "names", "columns"),
    [((1, 8, 1, 1), ["fsdp"], 16), ((1, 8, 1, 1), ["fsdp"], 1024), ((1, 4, 1, 2), ["fsdp", "sp"], 16)],
    ids=str,
)
def test_in_steps_each_device_gets_the_same_columns_as_in_one(dims: Any, names: list[str], columns: int):
    x = jnp.arange(8 * 3 * columns).reshape(8 * 3, columns) % 1001

    def parts(scatter: Any) -> np.ndarray:
        over, axes = P(tuple(names)), P(None, tuple(names))
        mapped = jax.shard_map(scatter, mesh=make_mesh(dims), in_specs=over, out_specs=axes, check_vma=False)
        return np.asarray(jax.jit(mapped)(x))

    found = parts(lambda x: in_steps(x, names))
    in_one = partial(jax.lax.psum_scatter, axis_name=tuple(names), scatter_dimension=1, tiled=True)
    np.testing.assert_array_equal(found, parts(in_one))
    np.testing.assert_array_equal(found, x.reshape(8, 3, columns).sum(0))
