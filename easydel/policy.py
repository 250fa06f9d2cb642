"""The precision and placement of a model's computation, decided once at load and handed to every module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from easydel.errors import ArgumentError
from easydel.ops.ring import Ring
from easydel.sharding import PartitionAxis, constrain
from easydel.sharding.axes import AxisName, names_in, size_over, without
from easydel.sharding.placement import fit

ATTENTION_OUTPUT, MLP_HIDDEN = "attention_output", "mlp_hidden"  # names of activations for the backward pass
REMAT = "everything"  # recomputes everything in a layer except its input
# Activations that are kept besides: attention's output before its projection; the input of an MLP's activation.
KEPT = {
    "save_attention": (ATTENTION_OUTPUT,),
    "save_mlp": (MLP_HIDDEN,),
    "save_attention_and_mlp": (ATTENTION_OUTPUT, MLP_HIDDEN),
}
REMAT_POLICIES = (
    *KEPT,
    # the policies of jax.checkpoint_policies; its other functions make policies, and need arguments
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "checkpoint_dots",
    "dots_with_no_batch_dims_saveable",
    "checkpoint_dots_with_no_batch_dims",
)
# Floats of 8 bits and fewer hold too few numbers without scales, which nothing here provides.
FLOATS = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16", "float64")))


@dataclass(frozen=True)
class Policy:
    """Computation dtype, storage dtype, matmul precision, and the mesh that activations are constrained to.

    `mesh` None means one device, or placement chosen by the user: nothing is constrained. `scan_layers` stacks equal
    layers and runs them by `jax.lax.scan`. `remat` chooses what the backward pass recomputes: "everything", everything
    but the activations of a name in `KEPT`, or by a policy of `jax.checkpoint_policies`; None keeps all activations.
    """

    dtype: jnp.dtype = field(default_factory=lambda: jnp.dtype(jnp.float32))
    param_dtype: jnp.dtype = field(default_factory=lambda: jnp.dtype(jnp.float32))
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT
    mesh: jax.sharding.Mesh | None = None
    axes: PartitionAxis = field(default_factory=PartitionAxis)
    shard_attention: bool = True
    scan_layers: bool = False
    remat: str | None = None

    @property
    def platform(self) -> str:
        """The kind of device that programs are compiled for: "cpu", "tpu", "gpu"."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def tpu(self) -> str:
        """The kind of TPU that programs are compiled for, as JAX names it; empty for other devices."""
        device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
        return device.device_kind if device.platform == "tpu" else ""

    @property
    def remat_policy(self) -> Callable[..., bool] | None:
        """Returns the policy of activations that `jax.checkpoint` keeps."""
        if self.remat in (None, REMAT):
            return None
        if self.remat in KEPT:
            return jax.checkpoint_policies.save_only_these_names(*KEPT[self.remat])
        return getattr(jax.checkpoint_policies, self.remat)

    @property
    def ring(self) -> Ring | None:
        """Returns the ring of devices that a sequence is split over; None without `shard_attention`."""
        if self.mesh is None or not self.shard_attention:
            return None
        axes = self.axes
        return Ring(self.mesh, axes.batch_axis, axes.sequence_axis, axes.head_axis, axes.kv_head_axis)

    def kv_copies(self, kv_heads: int) -> int:
        """Returns the number of devices that share a key and value head: each holds a copy of it.

        It is 1 where there are as many heads as devices along their axis, or a multiple, or where none are split.
        """
        if self.mesh is None or not self.shard_attention:
            return 1
        devices = size_over(names_in(self.axes.kv_head_axis), self.mesh)
        return devices // math.gcd(kv_heads, devices)

    def shard(self, x: jax.Array, *axes: AxisName) -> jax.Array:
        """Constrains activation `x` to mesh axes, one per dimension; a mesh axis that does not divide is dropped."""
        return constrain(x, self.mesh, axes)

    def logical_axes(self, names: tuple[str | None, ...]) -> tuple[AxisName, ...]:
        """Returns the mesh axes of logical ones ("batch" is `batch_axis`); heads only if `shard_attention`."""
        whole = () if self.shard_attention else ("head", "kv_head", "head_dim")
        return tuple(None if name is None or name in whole else getattr(self.axes, f"{name}_axis") for name in names)

    def shard_hidden(self, x: jax.Array) -> jax.Array:
        """Constrains the values between layers, [batch, length, ..., features]."""
        axes, between = self.axes, (None,) * (x.ndim - 3)
        return self.shard(x, axes.batch_axis, axes.sequence_axis, *between, axes.activation_hidden_axis)

    @property
    def token_axis(self) -> AxisName:
        """The mesh axes that rows are split over where kernels stay, and tokens are sent to them."""
        return without(self.axes.batch_axis, names_in(self.axes.hidden_axis))

    def shard_tokens(self, x: jax.Array) -> jax.Array:
        """Constrains tokens [batch, ..., features] to be on all devices that share a kernel's other dimensions.

        A product then leaves its kernel where it is, and moves the tokens instead.
        """
        if self.mesh is None or self.mesh.size == 1 or on_one_device():
            return x
        free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        split = PartitionSpec(fit(x.shape[:1], (self.token_axis,), self.mesh)[0], *free)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, split))

    def shard_heads(self, x_BTNC: jax.Array, *, kv: bool = False) -> jax.Array:
        """Constrains per-head activations [batch, length, heads, channels], if `shard_attention`."""
        if not self.shard_attention:
            return x_BTNC
        heads = self.axes.kv_head_axis if kv else self.axes.head_axis
        return self.shard(x_BTNC, self.axes.batch_axis, self.axes.sequence_axis, heads, self.axes.head_dim_axis)


def on_one_device() -> bool:
    """True inside of `shard_map`, where arrays are what one device has: nothing is left to be split."""
    return jax.sharding.AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def float_dtype(name: str, value: Any) -> jnp.dtype:
    """Returns the dtype, one of `FLOATS`, that argument `name` chooses. Raises ArgumentError for any other."""
    hint = "use jnp.float32, jnp.bfloat16 or jnp.float16"
    try:
        dtype = None if value is None else jnp.dtype(value)  # numpy would take None for float64
    except (TypeError, ValueError):
        dtype = None
    if dtype is None:
        raise ArgumentError(f"{name}={value!r} is no dtype", hint=hint)
    if dtype not in FLOATS:
        raise ArgumentError(f"{name}={value!r} is not a floating-point dtype that models can have", hint=hint)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ArgumentError(f"{name}={value!r} without jax_enable_x64: JAX would make it float32")
    return dtype
