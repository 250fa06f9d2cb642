"""The programs of generating and of training, lowered for a mesh from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from easydel.generate.cache_lengths import mesh_axes
from easydel.generate.programs import DecodeState, prefill, step as decode_step
from easydel.generate.prompt import Prompt
from easydel.layers.part import Cached
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules
from easydel.sharding import default_rules, shardings
from easydel.sharding.placement import fit
from easydel.train.state import Optimizer, State, moment_shardings
from easydel.train.steps import step as train_step
from easydel.tree import Tree, flatten, unflatten

# B batch, T tokens, S cache slots


def placed_shapes(model: LanguageModel) -> Tree:
    """Returns the model's parameters as shapes, split over its mesh by the default rules."""
    leaves, policy = flatten(model.params), model.policy
    assert policy.mesh is not None
    rules = default_rules(policy.axes)
    split, _ = shardings({path: leaf.shape for path, leaf in leaves.items()}, policy.mesh, rules, strict=False)
    return unflatten({path: _shape(leaf, split[path]) for path, leaf in leaves.items()})


def lower_step(
    model: LanguageModel, params: Mapping[str, Any], batch: int, slots: int, rules: Rules | None = None
) -> jax.stages.Lowered:
    """Returns one step of decoding `batch` rows with a cache of `slots`, as `generate` runs it."""
    mesh = model.policy.mesh
    assert mesh is not None
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Cached):
            return _shape(leaf, whole)
        axes = mesh_axes(leaf, model.policy)
        return replace(leaf, array=_shape(leaf.array, NamedSharding(mesh, fit(leaf.array.shape, axes, mesh))))

    def of(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    empty = jax.eval_shape(lambda: model.init_cache(batch, slots))
    cache = jax.tree.map(placed, empty, is_leaf=lambda leaf: isinstance(leaf, Cached))
    state = DecodeState(cache, of(batch, slots), of(batch), of(), of(), of(batch, dtype=jnp.bool_))
    return model.compiled(decode_step).lower(params, state, rules or Rules())


def lower_prefill(model: LanguageModel, params: Mapping[str, Any], batch: int, length: int) -> jax.stages.Lowered:
    """Returns the pass over prompts of `length` tokens as one program."""
    prompt = Prompt(np.zeros((batch, length), np.int32), np.ones((batch, length), bool))
    return model.compiled(prefill).lower(params, prompt, None, Rules())


def lower_training(
    model: LanguageModel, params: Mapping[str, Any], optimizer: Optimizer, batch: int, length: int, **options: Any
) -> jax.stages.Lowered:
    """Returns a step of training all parameters but buffers; `options` are those of `easydel.train.step`."""
    leaves, buffers = flatten(params), model.buffers
    trained = unflatten({path: leaf for path, leaf in leaves.items() if path not in buffers})
    frozen = unflatten({path: leaf for path, leaf in leaves.items() if path in buffers})
    moments = jax.tree.map(_shape, jax.eval_shape(optimizer.init, trained), moment_shardings(optimizer, trained))
    assert model.policy.mesh is not None
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(model.policy.mesh, PartitionSpec()))
    tokens = {"input_ids": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
    return train_step(model, optimizer, **options).lower(State(trained, frozen, moments, count), tokens)


def _shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
