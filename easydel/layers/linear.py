"""Matrix products and look-ups: the only modules that hold large parameters.

Kernels keep the checkpoint's own layout, [out, in], and are contracted on their last dimension.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from easydel.ops import few_rows
from easydel.ops.coded import Coded
from easydel.ops.lookup import Split, look_up
from easydel.ops.split_product import SplitProduct
from easydel.policy import Policy, on_one_device
from easydel.stored import Stored
from easydel.tree import split_of, unfilled


class Buffer(nnx.Param):
    """A parameter that is not learned: a constant, a table of integers, a bias that balances experts.

    It is never trained, cast to `param_dtype`, or quantized: loading leaves it the dtype of its file, and the module
    casts it where it computes. No gradient reaches it.
    """

    def __getitem__(self, key: Any) -> jax.Array:
        return jax.lax.stop_gradient(super().__getitem__(key))


def buffer(shape: tuple[int, ...], dtype: Any) -> Buffer:
    """A buffer without a value yet. Of an integer `dtype`, files must hold integers; otherwise, floats."""
    return Buffer(jax.ShapeDtypeStruct(shape, dtype), eager_sharding=False)


class Exact(nnx.Param):
    """A small learned parameter that loading never rounds: it has the dtype of its file, if that has more bits.

    transformers keeps these in float32, whatever the others are (its `_keep_in_fp32_modules_strict`).
    """


def exact(shape: tuple[int, ...], policy: Policy) -> Exact:
    """A parameter that is never rounded, without a value yet."""
    return Exact(jax.ShapeDtypeStruct(shape, policy.param_dtype), eager_sharding=False)


def parameter(shape: tuple[int, ...], policy: Policy) -> nnx.Param:
    """A parameter without a value yet; loading fills it."""
    return unfilled(shape, policy.param_dtype)


# Products of fewer rows run on a TPU's vector unit, at a third of the speed of its matrix unit.
ROWS = 8


def _with_rows(x: jax.Array) -> jax.Array:
    """Returns `x` [..., length, in] with zeros behind it, so that its length is enough for `ROWS` rows in all."""
    length = -(-ROWS * x.shape[-2] * x.shape[-1] // x.size)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length - x.shape[-2]), (0, 0)])


def _moves_less(rows: int, outputs: int, inputs: int) -> bool:
    """True if a product's rows and their sums over devices are fewer numbers than its kernel."""
    return rows * (inputs + 2 * outputs) < inputs * outputs


def contract(x: jax.Array, kernel: jax.Array | Coded, policy: Policy, split: PartitionSpec | None = None) -> jax.Array:
    """Returns `x` [..., in] times `kernel` [out, in] on their last dimensions, in the computation dtype.

    `split` says how the kernel is split over the policy's mesh, where that is known.
    """
    if x.ndim < 3 or x.shape[-2] > 1 or not _moves_less(x.size // x.shape[-1], *kernel.shape):
        return _contract(x, kernel, policy)
    if isinstance(kernel, Coded):
        x, kernel = kernel.inputs(x), kernel.bare
    rows = max(x.size // x.shape[-1], ROWS)
    by_kernel = isinstance(kernel, Coded) and few_rows.takes(rows, policy.dtype, kernel, _chip(kernel, policy))
    product = None
    if split is not None and (by_kernel or _is_filled(x, policy)):
        product = _split_product(x.shape, kernel, policy, split, by_kernel=by_kernel)
    if product is None:
        return policy.shard_tokens(_contract(policy.shard_tokens(x), kernel, policy))
    return product(lambda x, kernel: _contract(x, kernel, policy), x.astype(policy.dtype), kernel)


def _chip(kernel: Coded, policy: Policy) -> str:
    """Returns the kind of TPU whose Pallas kernel may multiply with `kernel`, or "".

    XLA would copy a layer's part of stacked kernels for it. With bytes whose scales multiply the product, XLA's own
    product reads them where they lie.
    """
    stacked = policy.scan_layers and kernel.form.bits == 8 and kernel.scales_outputs
    return "" if stacked else policy.tpu


def _split_product(
    shape: tuple[int, ...], kernel: jax.Array | Coded, policy: Policy, split: PartitionSpec, *, by_kernel: bool
) -> SplitProduct | None:
    if policy.mesh is None or on_one_device():
        return None
    return SplitProduct.of(policy.mesh, policy.token_axis, shape, kernel, split, always=by_kernel)


def _is_filled(x: jax.Array, policy: Policy) -> bool:
    """True if a product adds rows to `x`."""
    return policy.platform == "tpu" and x.ndim > 1 and 0 < x.size < ROWS * x.shape[-1]


def _contract(x: jax.Array, kernel: jax.Array | Coded, policy: Policy) -> jax.Array:
    if _is_filled(x, policy):
        return _contract(_with_rows(x), kernel, policy)[..., : x.shape[-2], :]
    whole = policy.mesh is None or policy.mesh.size == 1
    # On CPU a product of two matrices has a faster backward pass; over a mesh it would mix batch and sequence.
    rows = x.reshape(-1, x.shape[-1]) if whole else x
    if isinstance(kernel, Coded):
        chip = _chip(kernel, policy) if whole or on_one_device() else ""
        y = kernel.times(rows.astype(policy.dtype), policy.precision, split=not whole, chip=chip)
    else:
        dimensions = (((rows.ndim - 1,), (1,)), ((), ()))
        y = jax.lax.dot_general(
            rows.astype(policy.dtype), kernel.astype(policy.dtype), dimensions, precision=policy.precision
        )
    return y.reshape(*x.shape[:-1], kernel.shape[0])


class Linear(Stored):
    """y = x @ kernel.T + bias, kernel [out, in]."""

    def __init__(self, inputs: int, outputs: int, policy: Policy, *, bias: bool = False):
        self.kernel = parameter((outputs, inputs), policy)
        self.bias = parameter((outputs,), policy) if bias else None
        self.policy = policy

    def __call__(self, x: jax.Array) -> jax.Array:
        y = contract(x, self.weight(), self.policy, self.split)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def effective(self) -> jax.Array | Coded:
        """Returns the kernel that `x` is multiplied with in all, for who multiplies with parts of it."""
        return self.weight()


class Float32Linear(nnx.Module):
    """A small Linear computed and returned in float32 and never quantized: routers, time steps."""

    def __init__(self, inputs: int, outputs: int, policy: Policy, *, bias: bool = False):
        self.kernel = parameter((outputs, inputs), policy)
        self.bias = parameter((outputs,), policy) if bias else None
        self.policy = replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = contract(x, self.kernel[...], self.policy, split_of(self.kernel))
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class Embedding(Stored):
    """Rows of `embedding` [rows, features] by index; also the output head where the two are tied.

    The rows are a vocabulary's `words`, or few.
    """

    matrix = "embedding"

    def __init__(self, rows: int, features: int, policy: Policy, *, words: bool = False):
        self.embedding = parameter((rows, features), policy)
        self.policy, self.words = policy, words

    def __call__(self, index: jax.Array) -> jax.Array:
        table, rows_of = self.weight(), partial(look_up, split=self._split())
        if isinstance(table, Coded):
            return table.rows(index, rows_of).whole(self.policy.dtype)
        return rows_of(table, index).astype(self.policy.dtype)

    def _split(self) -> Split | None:
        mesh, axes = self.policy.mesh, self.policy.axes
        if mesh is None:
            return None
        rows = axes.vocab_axis if self.words else None
        return Split(mesh, rows, axes.hidden_axis, (axes.batch_axis, axes.sequence_axis))

    def attend(self, x: jax.Array) -> jax.Array:
        """Returns the products of `x` [..., features] with every row: tied logits."""
        return contract(x, self.weight(), self.policy, self.split)
