"""How a model computes: precision and placement, decided once at load and handed to every module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from easydel.errors import ArgumentError
from easydel.ops.ring import Ring
from easydel.sharding import PartitionAxis, constrain
from easydel.sharding.axes import AxisName

ATTENTION_OUTPUT, MLP_HIDDEN = "attention_output", "mlp_hidden"  # what layers name for the backward pass
REMAT = "everything"  # recomputes all of a layer but its input
# What else is kept: what attention gives before its output projection; what goes into the activation of an MLP.
KEPT = {
    "save_attention": (ATTENTION_OUTPUT,),
    "save_mlp": (MLP_HIDDEN,),
    "save_attention_and_mlp": (ATTENTION_OUTPUT, MLP_HIDDEN),
}
REMAT_POLICIES = (
    *KEPT,
    # those of jax.checkpoint_policies that are policies; the others make some, and need arguments
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "checkpoint_dots",
    "dots_with_no_batch_dims_saveable",
    "checkpoint_dots_with_no_batch_dims",
)
# Those of 8 bits and fewer hold too few numbers without scales, which nothing here gives them.
FLOATS = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16", "float64")))


@dataclass(frozen=True)
class Policy:
    """Computation dtype, storage dtype, matmul precision, and the mesh that activations are constrained to.

    `mesh` None means one device, or placement chosen by the user: nothing is constrained. `scan_layers` stacks equal
    layers and runs them by `jax.lax.scan`. `remat` names what the backward pass recomputes: "everything", all but what
    a name in `KEPT` keeps, or as a policy in `jax.checkpoint_policies` says; None keeps all activations.
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
    def remat_policy(self) -> Callable[..., bool] | None:
        """What `jax.checkpoint` keeps."""
        if self.remat in (None, REMAT):
            return None
        if self.remat in KEPT:
            return jax.checkpoint_policies.save_only_these_names(*KEPT[self.remat])
        return getattr(jax.checkpoint_policies, self.remat)

    @property
    def ring(self) -> Ring | None:
        """How attention goes round the devices that a sequence is split over; None without `shard_attention`."""
        if self.mesh is None or not self.shard_attention:
            return None
        axes = self.axes
        return Ring(self.mesh, axes.batch_axis, axes.sequence_axis, axes.head_axis, axes.kv_head_axis)

    def shard(self, x: jax.Array, *axes: AxisName) -> jax.Array:
        """Constrain activation `x` to mesh axes, one per dimension; a mesh axis that does not divide is dropped."""
        return constrain(x, self.mesh, axes)

    def logical_axes(self, names: tuple[str | None, ...]) -> tuple[AxisName, ...]:
        """The mesh axes of logical ones, "batch" for `PartitionAxis.batch_axis`; heads only if `shard_attention`."""
        whole = () if self.shard_attention else ("head", "kv_head", "head_dim")
        return tuple(None if name is None or name in whole else getattr(self.axes, f"{name}_axis") for name in names)

    def shard_hidden(self, x: jax.Array) -> jax.Array:
        """Constrain what flows between layers, [batch, length, ..., features]."""
        axes, between = self.axes, (None,) * (x.ndim - 3)
        return self.shard(x, axes.batch_axis, axes.sequence_axis, *between, axes.activation_hidden_axis)

    def shard_heads(self, x_BTNC: jax.Array, *, kv: bool = False) -> jax.Array:
        """Constrain per-head activations [batch, length, heads, channels], if `shard_attention`."""
        if not self.shard_attention:
            return x_BTNC
        heads = self.axes.kv_head_axis if kv else self.axes.head_axis
        return self.shard(x_BTNC, self.axes.batch_axis, self.axes.sequence_axis, heads, self.axes.head_dim_axis)


def float_dtype(name: str, value: Any) -> jnp.dtype:
    """The one of `FLOATS` that argument `name` says; ArgumentError if it is none."""
    hint = "use jnp.float32, jnp.bfloat16 or jnp.float16"
    try:
        dtype = None if value is None else jnp.dtype(value)  # numpy takes None for float64
    except (TypeError, ValueError):
        dtype = None
    if dtype is None:
        raise ArgumentError(f"{name}={value!r} is no dtype", hint=hint)
    if dtype not in FLOATS:
        raise ArgumentError(f"{name}={value!r} is not a floating-point dtype that models can have", hint=hint)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ArgumentError(f"{name}={value!r} without jax_enable_x64: JAX would make it float32")
    return dtype
