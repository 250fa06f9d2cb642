"""Products of rows with the matrix of their own group: only the chosen experts are computed.

`jax.lax.ragged_dot` is native on accelerators, and for TPUs there is a kernel besides (`gmm.py`). On CPUs XLA expands
it to every group times every row, so there a loop over blocks of rows takes its place, each block a plain product with
the one matrix of its group.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.ops import few_rows_of_groups, gmm
from easydel.ops.coded import Coded

# M rows sorted by group, E groups, O and I the two sides of each matrix
MAX_BLOCK = 128  # larger blocks waste more rows than they save in copies of matrices


def ragged_dot(
    x_MI: jax.Array, kernel_EOI: jax.Array | Coded, sizes_E: jax.Array, precision: Any = None, *, chip: str = ""
) -> jax.Array:
    """Returns row m times the transpose of its group's [out, in] matrix: [M, O] in the dtype of `x_MI`.

    Rows are sorted by group: the first `sizes_E[0]` belong to group 0, and so on. Rows past the last group give zeros.
    Matrices may be stored by codes, which get no gradient. On a TPU of the kind `chip`, few rows are multiplied with
    the codes by a Pallas kernel.
    """
    if not isinstance(kernel_EOI, Coded) or not (kernel_EOI.scales_outputs or kernel_EOI.changes_inputs):
        return _differentiable(x_MI, kernel_EOI, sizes_E, precision, chip)
    group_M = jnp.searchsorted(jnp.cumsum(sizes_E), jnp.arange(x_MI.shape[0]), side="right", method="compare_all")
    if kernel_EOI.changes_inputs:
        x_MI = kernel_EOI.of_groups(group_M).inputs(x_MI)
    y_MO = _differentiable(x_MI, kernel_EOI.bare, sizes_E, precision, chip)
    if not kernel_EOI.scales_outputs:
        return y_MO
    return y_MO * kernel_EOI.scales.at[group_M].get(mode="fill", fill_value=0).astype(y_MO.dtype)


def _plain(x: jax.Array, kernel: jax.Array | Coded, sizes: jax.Array, precision: Any, chip: str) -> jax.Array:
    return _product(x, kernel, sizes, 2, precision, chip)


def _forward(
    x: jax.Array, kernel: jax.Array | Coded, sizes: jax.Array, precision: Any, chip: str
) -> tuple[jax.Array, Any]:
    return _plain(x, kernel, sizes, precision, chip), (x, kernel, sizes)


def _backward(precision: Any, chip: str, saved: Any, dy_MO: jax.Array) -> tuple[Any, Any, Any]:
    x_MI, kernel, sizes = saved
    dx_MI = _product(dy_MO, kernel, sizes, 1, precision)
    none = np.zeros(sizes.shape, jax.dtypes.float0)
    if isinstance(kernel, Coded):
        return dx_MI, jax.tree.map(_no_gradient, kernel), none
    ways: dict[str, Any] = {"tpu": gmm.outer} if gmm.takes(dy_MO, kernel) else {}
    outer = jax.lax.platform_dependent(
        dy_MO,
        x_MI,
        sizes,
        cpu=partial(outer_by_blocks, precision=precision),
        default=partial(outer_native, precision=precision),
        **ways,
    )
    return dx_MI, outer.astype(kernel.dtype), none


_differentiable: Any = jax.custom_vjp(_plain, nondiff_argnums=(3, 4))
_differentiable.defvjp(_forward, _backward)


def _no_gradient(array: jax.Array) -> Any:
    floats = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.zeros_like(array) if floats else np.zeros(array.shape, jax.dtypes.float0)


def _floats(kernel: jax.Array | Coded, dtype: Any) -> jax.Array:
    """Returns the matrices of a kernel, without scales that `ragged_dot` multiplies its result by."""
    return kernel.whole(dtype, scaled=not kernel.scales_outputs) if isinstance(kernel, Coded) else kernel.astype(dtype)


def _product(
    x: jax.Array, kernel: jax.Array | Coded, sizes: jax.Array, contracted: int, precision: Any, chip: str = ""
) -> jax.Array:
    """Returns rows times their matrices, contracted on the matrices' dimension `contracted` (of E, O, I)."""
    ways: dict[str, Any] = {"tpu": partial(gmm.product, contracted=contracted)} if gmm.takes(x, kernel) else {}
    if isinstance(kernel, Coded) and contracted == 2 and few_rows_of_groups.takes(x, kernel, chip):
        ways["tpu"] = few_rows_of_groups.product
    y = jax.lax.platform_dependent(
        x,
        kernel,
        sizes,
        cpu=partial(product_by_blocks, contracted=contracted, precision=precision),
        default=partial(product_native, contracted=contracted, precision=precision),
        **ways,
    )
    return jnp.where((jnp.arange(x.shape[0]) < jnp.sum(sizes))[:, None], y, 0)


def product_native(
    x: jax.Array, kernel: jax.Array | Coded, sizes: jax.Array, *, contracted: int, precision: Any = None
) -> jax.Array:
    dimensions = jax.lax.RaggedDotDimensionNumbers((((1,), (contracted,)), ((), ())), [0], [0])
    return jax.lax.ragged_dot_general(x, _floats(kernel, x.dtype), sizes, dimensions, precision)


def outer_native(dy_MO: jax.Array, x_MI: jax.Array, sizes: jax.Array, *, precision: Any = None) -> jax.Array:
    """Returns the sum of outer products of each group's rows, [E, O, I]: the gradient of the kernel."""
    dimensions = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return jax.lax.ragged_dot_general(dy_MO, x_MI, sizes, dimensions, precision, jnp.float32)


def product_by_blocks(
    x: jax.Array, kernel: jax.Array | Coded, sizes: jax.Array, *, contracted: int, precision: Any = None
) -> jax.Array:
    rows = x.shape[0]
    block, groups, starts, count = _blocks(rows, sizes)
    stored = kernel.sliceable() if isinstance(kernel, Coded) else kernel
    padded = jnp.pad(x, ((0, block), (0, 0)))

    def step(index: jax.Array, y: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(padded, starts[index], block)
        own = jax.tree.map(lambda part: jax.lax.dynamic_index_in_dim(part, groups[index], keepdims=False), stored)
        matrix = _floats(own, x.dtype)
        product = jax.lax.dot_general(part, matrix, (((1,), (contracted - 1,)), ((), ())), precision=precision)
        # a block reaches into the next group's rows, which the next block overwrites
        return jax.lax.dynamic_update_slice_in_dim(y, product, starts[index], axis=0)

    empty = jnp.zeros((rows + block, kernel.shape[3 - contracted]), x.dtype)
    return jax.lax.fori_loop(0, count, step, empty)[:rows]


def outer_by_blocks(dy_MO: jax.Array, x_MI: jax.Array, sizes: jax.Array, *, precision: Any = None) -> jax.Array:
    block, groups, starts, count = _blocks(x_MI.shape[0], sizes)
    dy, x = (jnp.pad(part, ((0, block), (0, 0))) for part in (dy_MO, x_MI))
    ends = jnp.cumsum(sizes)

    def step(index: jax.Array, total: jax.Array) -> jax.Array:
        start, group = starts[index], groups[index]
        own = (start + jnp.arange(block) < ends[group])[:, None]
        part = jnp.where(own, jax.lax.dynamic_slice_in_dim(dy, start, block), 0)
        outer = jax.lax.dot_general(
            part,
            jax.lax.dynamic_slice_in_dim(x, start, block),
            (((0,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,  # blocks of one group add up
        )
        return jax.lax.dynamic_update_index_in_dim(total, total[group] + outer, group, 0)

    empty = jnp.zeros((sizes.shape[0], dy.shape[1], x.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, count, step, empty)


def _blocks(rows: int, sizes: jax.Array) -> tuple[int, jax.Array, jax.Array, jax.Array]:
    """Returns rows per block, each block's group and first row, and the number of blocks (arrays are longer)."""
    experts = sizes.shape[0]
    block = min(MAX_BLOCK, 1 << max(0, (rows // experts).bit_length() - 1))
    per_group = -(-sizes // block)
    ends = jnp.cumsum(per_group)
    index = jnp.arange(rows // block + experts)
    groups = jnp.minimum(jnp.searchsorted(ends, index, side="right", method="compare_all"), experts - 1)
    starts = (jnp.cumsum(sizes) - sizes)[groups] + (index - (ends - per_group)[groups]) * block
    return block, groups, starts, ends[-1]
