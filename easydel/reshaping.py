"""Changes of a whole model after it was loaded: its mesh, the size of its vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.layers.stack import check_head_splits
from easydel.module import LanguageModel
from easydel.sharding import PartitionAxis, Rules
from easydel.sharding.placement import Placement
from easydel.tree import annotate, bind, flatten, modules_of, unflatten

VOCABULARY = ("model/embed_tokens/embedding", "lm_head/kernel", "lm_head/bias")


def to_mesh(model: LanguageModel, mesh: Mesh, axes: PartitionAxis, rules: Rules | None) -> None:
    """Splits a model's parameters over `mesh`, and lets its modules compute there."""
    if not isinstance(mesh, Mesh):
        hint = 'jax.make_mesh((1, 8, 1, 1), ("dp", "fsdp", "tp", "sp")) is one'
        raise ArgumentError(f"mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh", hint=hint)
    axes = axes.resolve(mesh.axis_names)
    blocks = {block for stack in model.record.layer_stacks.values() for block in stack}
    check_head_splits(blocks, replace(model.policy, mesh=mesh, axes=axes))
    leaves = flatten(model.params)
    splits = Placement.by_rules(mesh, axes, rules).shardings_of(leaves)
    params = unflatten({path: jax.device_put(leaf, splits[path]) for path, leaf in leaves.items()})
    for _, module in modules_of(model, cast(type[Any], nnx.Module)):
        if hasattr(module, "policy"):
            module.policy = replace(module.policy, mesh=mesh, axes=axes)
    bind(model, params)
    annotate(model, params)
    model.forget_compiled()


def resize_vocabulary(model: LanguageModel, rows: int) -> None:
    """Gives token vectors and head `rows` rows; new ones are the mean of the old ones."""
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ArgumentError(f"rows={rows!r}, expected a number of at least 1")
    leaves, record = flatten(model.params), model.record
    if any(f"{path}_scale" in leaves for path in VOCABULARY):
        hint = "load without load_in_8bit, or resize first"
        raise UnsupportedModelError("an int8 vocabulary cannot be resized", hint=hint)
    found = [path for path in leaves if leaves[path].ndim and leaves[path].shape[0] == record.vocab]
    strange = sorted({*found} - {*VOCABULARY})
    if record.has_encoder or strange or record.vocab_of("input_ids") != record.vocab:
        told = "an encoder-decoder" if record.has_encoder else ", ".join(strange) or "tokens without logits"
        raise UnsupportedModelError(f"the vocabulary of {told} cannot be resized here")
    for path in found:
        leaf = leaves[path]
        resized = jax.jit(_resized, static_argnums=1)
        leaves[path] = jax.device_put(resized(leaf, rows), _splitting(leaf.sharding, rows))
    params = unflatten(leaves)
    bind(model, params)
    annotate(model, params)
    model.record = replace(record, vocab=rows)
    model.config = model.config.for_family(model.config.declared, {"vocab_size": rows})
    model.forget_compiled()


def _resized(table: jax.Array, rows: int) -> jax.Array:
    more = max(rows - table.shape[0], 0)
    mean = jnp.mean(table.astype(jnp.float32), axis=0, keepdims=True).astype(table.dtype)
    return jnp.concatenate([table[:rows], jnp.broadcast_to(mean, (more, *table.shape[1:]))])


def _splitting(sharding: jax.sharding.Sharding, rows: int) -> jax.sharding.Sharding:
    """Returns the sharding, without a split of the rows if their new number is not divisible by it."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    try:
        sharding.shard_shape((rows, *[1 << 20] * (len(sharding.spec) - 1)))
    except ValueError:
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(None, *sharding.spec[1:]))
    return sharding
