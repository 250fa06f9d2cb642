"""Products and look-ups of matrices that are stored by codes: the only place that makes floats of codes.

Codes that share a byte are neighbours in a row. They are never put in order: a product is the sum of one product for
each place in the byte, of those columns of both sides, which costs no pass over the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from easydel.forms import FP4, Form
from easydel.ops import few_rows
from easydel.ops.lookup import sliceable

BLOCK_BYTES = 4 << 20  # of floats that a CPU makes at a time: they stay in its cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coded:
    """A matrix [..., rows, columns] as arrays of codes, scales and what else `form` says, of equal leading dimensions.

    `order` and `gains` change the inputs of a product in place of the matrix: see `inputs`.
    """

    codes: jax.Array
    scales: jax.Array
    shifts: jax.Array | None = None
    factors: jax.Array | None = None
    order: jax.Array | None = None
    gains: jax.Array | None = None
    form: Form = field(kw_only=True, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], self.codes.shape[-1] * self.form.per_byte)

    @property
    def by_rows(self) -> bool:
        """True if each row has one scale; the part of a row that a device has, too."""
        return self.scales.ndim < self.codes.ndim

    @property
    def scales_outputs(self) -> bool:
        """True if scales can multiply the outputs of a product in place of the matrix."""
        return self.by_rows and self.shifts is None and self.factors is None

    @property
    def changes_inputs(self) -> bool:
        """True if `inputs` changes them."""
        return self.order is not None or self.gains is not None

    def inputs(self, x: jax.Array) -> jax.Array:
        """Returns what stands for inputs x [..., columns] in products with the matrix `bare` of order and gains.

        The leading dimensions of order and gains, if any, are those of `x`.
        """
        if self.gains is not None:
            x = x * self.gains.astype(x.dtype)
        if self.order is None:
            return x
        if self.order.ndim == 1:
            return jnp.take(x, self.order, axis=-1, mode="clip")
        return jnp.take_along_axis(x, self.order, axis=-1, mode="clip")

    def of_groups(self, group: jax.Array) -> Coded:
        """Returns matrices of experts, with the order and gains of the expert of each number in `group`."""
        own = {name: getattr(self, name) for name in ("order", "gains")}
        return replace(self, **{name: part[group] for name, part in own.items() if part is not None})

    @property
    def bare(self) -> Coded:
        """The matrix without order and gains."""
        return replace(self, order=None, gains=None)

    def rows(self, index: jax.Array, look_up: Callable[[jax.Array, jax.Array], jax.Array]) -> Coded:
        """Returns rows of one matrix, [*index, columns]; `look_up` gives the rows of a table with two dimensions."""

        def of_blocks(part: jax.Array) -> jax.Array:
            block = self.form.row_of(index)
            return look_up(part, block) if part.ndim > 1 else jnp.take(part, block, axis=0, mode="clip")

        part = self.with_numbers(of_blocks, look_up(self.codes, index))
        return part._in_order()

    def whole(self, dtype: Any, *, scaled: bool = True) -> jax.Array:
        """Returns the floats, [..., rows, columns], or what scales have not multiplied yet."""
        parts = self._parts(dtype, scaled=scaled)
        floats = parts[0] if len(parts) == 1 else jnp.stack(parts, axis=-1).reshape(self.shape)
        if self.order is not None:
            place = jnp.argsort(self.order, axis=-1)
            if place.ndim == 1:
                floats = jnp.take(floats, place, axis=-1)
            else:
                floats = jnp.take_along_axis(floats, place[..., None, :], axis=-1)
        return floats if self.gains is None else floats * self.gains[..., None, :].astype(dtype)

    def times(self, x: jax.Array, precision: Any, *, split: bool, chip: str = "") -> jax.Array:
        """Returns x [..., columns] times the transpose of one matrix [rows, columns], in the dtype of `x`.

        On CPUs a large matrix is made floats a few rows at a time, unless it is `split` over a mesh. On one TPU, of the
        kind `chip`, few rows of `x` are multiplied with the codes by a Pallas kernel.
        """
        if self.changes_inputs:
            return self.bare.times(self.inputs(x), precision, split=split, chip=chip)
        at_once = partial(_product, precision=precision)
        rows = self._at_a_time(BLOCK_BYTES // (4 * self.shape[1]))
        ways: dict[str, Any] = {}
        if not split and self.shape[0] > 2 * rows:
            ways["cpu"] = partial(_product_by_blocks, rows=rows, precision=precision)
        if few_rows.takes(x.size // x.shape[-1], x.dtype, self, chip):
            ways["tpu"] = partial(_product_of_few, precision)
        return jax.lax.platform_dependent(x, self, default=at_once, **ways) if ways else at_once(x, self)

    def between(self, start: Any, rows: int) -> Coded:
        """Returns `rows` rows of one matrix, from row `start` on: as many as `_at_a_time` says, or the last ones."""
        cut, form = jax.lax.dynamic_slice_in_dim, self.form
        of_blocks = rows if form.step > 1 else rows // form.block[0]
        part = self.with_numbers(lambda part: cut(part, form.row_of(start), of_blocks), cut(self.codes, start, rows))
        return part._in_order() if form.step > 1 else part

    def _at_a_time(self, rows: int) -> int:
        """Returns the rows to take at a time, if possible at most `rows`: whole blocks, or rows of different ones."""
        height, step = self.form.block[0], self.form.step
        if step == 1:
            return max(rows // height, 1) * height
        return max(part for part in range(1, max(rows, 1) + 1) if step % part == 0)

    def _in_order(self) -> Coded:
        """Returns the same arrays as a matrix each of whose rows has numbers of its own."""
        return replace(self, form=replace(self.form, block=(1, self.form.block[1]), step=1))

    def sliceable(self) -> Coded:
        """Returns the same matrix for slices in a loop."""
        return replace(self, codes=sliceable(self.codes))

    def with_numbers(self, pick: Callable[[jax.Array], jax.Array], codes: jax.Array | None = None) -> Coded:
        """Returns the same matrix with what `pick` takes of its scales and of its shifts, and perhaps other codes."""
        shifts = None if self.shifts is None else pick(self.shifts)
        return replace(self, codes=self.codes if codes is None else codes, scales=pick(self.scales), shifts=shifts)

    def _parts(self, dtype: Any, *, scaled: bool) -> list[jax.Array]:
        """Returns the floats of each place in a byte, [..., rows, columns / places]. Computed in float32."""
        parts = [self._numbers(place) for place in range(self.form.per_byte)]
        if not scaled:
            return [part.astype(dtype) for part in parts]
        scales = self.scales.astype(jnp.float32)
        if self.factors is not None:
            scales = scales * self.factors.reshape(*self.factors.shape, *[1] * (scales.ndim - self.factors.ndim))
        shifts = None if self.shifts is None else self.shifts.astype(jnp.float32)
        return [self._scaled(part, place, scales, shifts).astype(dtype) for place, part in enumerate(parts)]

    def _scaled(self, values: jax.Array, place: int, scales: jax.Array, shifts: jax.Array | None) -> jax.Array:
        width, together = self.form.block[1], self.form.per_byte
        if self.by_rows:
            blocks, spread = values, lambda part: part[..., None]
        elif self.form.block[0] > 1 and width > together:
            # block columns are spread first, of few numbers: XLA would bring the matrix into another order for blocks
            in_blocks, of_blocks = self.form.by_blocks(values.shape, values.shape[-1])
            blocks = values.reshape(in_blocks)
            spread = lambda part: jnp.repeat(part, width // together, axis=-1).reshape((*of_blocks[:-1], -1))  # noqa: E731
        else:
            in_blocks, of_blocks = self.form.by_blocks(values.shape, max(width // together, 1))
            every = together if width == 1 else 1  # of blocks of one column, each place in a byte has its own
            blocks = values.reshape(in_blocks)
            spread = lambda part: (part[..., place::every] if every > 1 else part).reshape(of_blocks)  # noqa: E731
        if shifts is not None and self.form.shift == "zero":
            blocks = blocks - spread(shifts)
        blocks = blocks * spread(scales)
        if shifts is not None and self.form.shift == "offset":
            blocks = blocks + spread(shifts)
        return blocks.reshape(values.shape)

    def _numbers(self, place: int) -> jax.Array:
        """Returns the values of the codes at one place of each byte, as float32."""
        code, bits, codes = self.form.code, self.form.bits, self.codes
        if bits == 8:
            if codes.dtype != code:
                codes = jax.lax.bitcast_convert_type(codes, code)
            return _looked_up(codes, self.form.table) if self.form.table else codes.astype(jnp.float32)
        if jnp.issubdtype(code, jnp.signedinteger):
            high = jax.lax.bitcast_convert_type(codes << (8 - bits * (place + 1)), jnp.int8)
            return (high >> (8 - bits)).astype(jnp.float32)
        low = (codes >> (bits * place)) & ((1 << bits) - 1)
        if self.form.table:
            return _looked_up(low, self.form.table)
        return _of_float4(low) if code == FP4 else low.astype(jnp.float32)


def _of_float4(code: jax.Array) -> jax.Array:
    """Returns the values of 4-bit floats: a sign, 2 bits of exponent and 1 of fraction (0, 0.5, 1, 1.5, 2, 3, 4, 6)."""
    code = code.astype(jnp.int32)
    exponent, fraction = (code >> 1) & 3, code & 1
    halves = jnp.where(exponent == 0, fraction, (2 + fraction) << jnp.maximum(exponent - 1, 0))
    return jnp.where(code & 8, -halves, halves).astype(jnp.float32) * jnp.where(code == 8, -0.0, 0.5)


def _looked_up(code: jax.Array, table: tuple[float, ...]) -> jax.Array:
    """Returns `table[code]` as float32: by choices where look-ups are slow."""

    def chosen(code: jax.Array) -> jax.Array:
        level = [jnp.float32(value) for value in table]
        for bit in range(len(table).bit_length() - 1):
            high = (code >> bit) & 1 == 1
            level = [jnp.where(high, b, a) for a, b in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    def taken(code: jax.Array) -> jax.Array:
        return jnp.take(jnp.asarray(table, jnp.float32), code.astype(jnp.uint8), axis=0, mode="clip")

    return jax.lax.platform_dependent(code, cpu=taken, default=taken if len(table) > 16 else chosen)


def _product(x: jax.Array, matrix: Coded, *, precision: Any) -> jax.Array:
    places = matrix.form.per_byte
    columns = x.reshape(*x.shape[:-1], -1, places)
    dimensions = (((x.ndim - 1,), (1,)), ((), ()))
    parts = matrix._parts(x.dtype, scaled=not matrix.scales_outputs)
    products = [
        jax.lax.dot_general(columns[..., place], part, dimensions, precision=precision)
        for place, part in enumerate(parts)
    ]
    y = sum(products[1:], start=products[0])
    return y * matrix.scales.astype(y.dtype) if matrix.scales_outputs else y


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_of_few(precision: Any, x: jax.Array, matrix: Coded) -> jax.Array:
    return few_rows.multiply(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], -1)


_product_of_few.defvjp(
    lambda precision, x, matrix: (_product_of_few(precision, x, matrix), (x, matrix)),
    lambda precision, saved, dy: jax.vjp(partial(_product, precision=precision), *saved)[1](dy),
)


def _product_by_blocks(x: jax.Array, matrix: Coded, *, rows: int, precision: Any) -> jax.Array:
    total, matrix = matrix.shape[0], matrix.sliceable()

    # recomputed in a backward pass: what it would keep of each block is, together, a whole matrix of floats
    @jax.checkpoint
    def step(start: jax.Array) -> jax.Array:
        return _product(x, matrix.between(start, rows), precision=precision)

    full = total // rows
    y = jnp.moveaxis(jax.lax.map(step, jnp.arange(full) * rows), 0, -2).reshape(*x.shape[:-1], full * rows)
    if total == full * rows:
        return y
    rest = _product(x, matrix.between(full * rows, total - full * rows), precision=precision)
    return jnp.concatenate([y, rest], axis=-1)
