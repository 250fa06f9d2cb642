"""The modules that compute with adapters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from easydel.layers.experts import ExpertLinear
from easydel.layers.linear import Embedding, Linear, contract
from easydel.lora.record import LoRA
from easydel.ops.coded import Coded
from easydel.ops.lookup import look_up
from easydel.policy import Policy

Base = Linear | Embedding | ExpertLinear


def floats(weight: jax.Array | Coded) -> jax.Array:
    """Returns a matrix in float32, however it is stored."""
    return weight.whole(jnp.float32) if isinstance(weight, Coded) else weight.astype(jnp.float32)


class Adapted:
    """What adapted modules have in common: the record of their adapters."""

    lora: LoRA


def _factor(*shape: int) -> nnx.Param:
    """A parameter in float32 whatever the kernel's dtype: adapters are small, and 16 bits would round updates away."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


def _take_over(module: nnx.Module, base: nnx.Module) -> None:
    """Gives `module` all attributes of `base`; what is None may become a parameter, so NNX has to look at it."""
    for name, value in vars(base).items():
        if not name.startswith("_"):
            setattr(module, name, nnx.data(None) if value is None else value)


class AdaptedLinear(Linear, Adapted):
    """A Linear with adapters; it takes over the parameters of `base`, stacked ones of scanned layers included.

    y = W x + scale * B A x. With a magnitude (DoRA), row i of W + scale * B A is scaled to the length `magnitude[i]`;
    as in PEFT, no gradient goes through its own length.
    """

    def __init__(self, base: Linear, lora: LoRA):
        _take_over(self, base)
        self.lora = lora
        *layers, out, inputs = base.shape
        self.lora_A = _factor(*layers, lora.r, inputs)
        self.lora_B = _factor(*layers, out, lora.r)
        self.lora_magnitude: nnx.Param | None = _factor(*layers, out) if lora.use_dora else nnx.data(None)
        self.lora_key: nnx.Param | None = nnx.data(None)  # of dropout: `with_keys` puts a Param here

    def __call__(self, x: jax.Array) -> jax.Array:
        seen = x if self.lora_key is None else dropped(x, self.lora_key[...], self.lora.lora_dropout)
        low = contract(seen, self.lora_A[...], self.policy, self._split_of_A())
        added = contract(low, self.lora_B[...], self.policy) * self.lora.scale
        y = super().__call__(x)
        if self.lora_magnitude is None:
            return y + added
        factors = self.lora_magnitude[...] / jax.lax.stop_gradient(self._lengths())
        plain = y if self.lora_key is None else super().__call__(seen)
        plain = plain if self.bias is None else plain - self.bias[...].astype(y.dtype)
        return y + ((factors - 1) * plain + factors * added).astype(y.dtype)

    def _split_of_A(self) -> PartitionSpec | None:
        """How A is split while it is multiplied: like the kernel's columns, since both have the same inputs."""
        return None if self.split is None else PartitionSpec(None, self.split[1])

    def _lengths(self) -> jax.Array:
        return lengths(self.whole_kernel(), self.lora_A[...], self.lora_B[...], self.lora.scale)

    def whole_kernel(self) -> jax.Array:
        """Returns the kernel without adapters, in float32."""
        return floats(self.weight())

    def effective(self) -> jax.Array:
        """Returns the kernel with its adapters, as floats."""
        kernel = self.whole_kernel() + self.lora.scale * (self.lora_B[...] @ self.lora_A[...])
        if self.lora_magnitude is not None:
            kernel = kernel * (self.lora_magnitude[...] / jax.lax.stop_gradient(self._lengths()))[..., None]
        return kernel


class AdaptedEmbedding(Embedding, Adapted):
    """An Embedding with adapters: row i + scale * B A[:, i]. A head that is tied to it stays as it was, as in PEFT.

    A magnitude is of each feature, over all rows.
    """

    def __init__(self, base: Embedding, lora: LoRA):
        _take_over(self, base)
        self.lora = lora
        *layers, rows, features = base.shape
        self.lora_A = _factor(*layers, lora.r, rows)
        self.lora_B = _factor(*layers, features, lora.r)
        self.lora_magnitude: nnx.Param | None = _factor(*layers, features) if lora.use_dora else nnx.data(None)

    def __call__(self, index: jax.Array) -> jax.Array:
        split = self._split()
        low = look_up(self.lora_A[...].T, index, split and replace(split, rows=None, columns=None))
        y = super().__call__(index)
        y = y + contract(low, self.lora_B[...], self.policy) * self.lora.scale
        if self.lora_magnitude is None:
            return y
        return (y * (self.lora_magnitude[...] / jax.lax.stop_gradient(self._lengths()))).astype(y.dtype)

    def _lengths(self) -> jax.Array:
        return lengths(self.whole_kernel(), self.lora_A[...], self.lora_B[...], self.lora.scale)

    def whole_kernel(self) -> jax.Array:
        """Returns the transpose of the table without adapters, in float32."""
        return floats(self.weight()).T

    def effective(self) -> jax.Array:
        """Returns the table with its adapters."""
        kernel = self.whole_kernel() + self.lora.scale * (self.lora_B[...] @ self.lora_A[...])
        if self.lora_magnitude is not None:
            kernel = kernel * (self.lora_magnitude[...] / self._lengths())[:, None]
        return kernel.T


class AdaptedExpertLinear(ExpertLinear, Adapted):
    """The kernels of experts with adapters, each expert its own; the module of all experts computes with them."""

    def __init__(self, base: ExpertLinear, lora: LoRA):
        _take_over(self, base)
        self.lora, self.adapter_scale = lora, lora.scale
        *layers, out, inputs = base.shape
        self.lora_A = _factor(*layers, lora.r, inputs)
        self.lora_B = _factor(*layers, out, lora.r)

    def effective(self) -> jax.Array:
        """Returns the kernels with their adapters, as floats."""
        return floats(self.weight()) + self.lora.scale * (self.lora_B[...] @ self.lora_A[...])


def adapted_module(base: Base, lora: LoRA) -> Base:
    """Returns the module with adapters that takes the place of `base`."""
    if isinstance(base, Embedding):
        return AdaptedEmbedding(base, lora)
    return AdaptedExpertLinear(base, lora) if isinstance(base, ExpertLinear) else AdaptedLinear(base, lora)


@partial(jax.jit, static_argnames="scale")
def lengths(kernel: jax.Array, low: jax.Array, high: jax.Array, scale: float) -> jax.Array:
    """Returns the length of each row of `kernel` + `scale` * `high` @ `low`, without ever holding that sum."""
    precision = jax.lax.Precision.HIGHEST
    crossed = jnp.einsum("...oi,...ri->...or", kernel, low, precision=precision)
    squares = jnp.einsum("...ri,...si->...rs", low, low, precision=precision)
    cross = jnp.sum(crossed * high, axis=-1)
    own = jnp.einsum("...or,...rs,...os->...o", high, squares, high, precision=precision)
    total = jnp.sum(jnp.square(kernel), axis=-1) + 2 * scale * cross + scale**2 * own
    return jnp.sqrt(jnp.maximum(total, jnp.finfo(jnp.float32).tiny))


def dropped(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Returns `x` with a share `rate` of its numbers 0, and the others larger by as much."""
    kept = jax.random.bernoulli(jax.random.wrap_key_data(key, impl="threefry2x32"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def plain_module(module: Base, policy: Policy) -> Base:
    """Returns a module without adapters for the merged matrix of `module`, whose bias and own modules it takes over."""
    if isinstance(module, Embedding):
        rows, features = module.shape[-2:]
        return Embedding(rows, features, policy, words=module.words)
    *stack, outputs, inputs = module.shape
    bias = module.bias is not None
    if isinstance(module, ExpertLinear):
        plain = ExpertLinear(stack[-1], inputs, outputs, policy, bias=bias)
    else:
        plain = Linear(inputs, outputs, policy, bias=bias)
    plain.bias = module.bias
    for name, child in vars(module).items():
        if isinstance(child, nnx.Module):
            setattr(plain, name, child)
    return plain
