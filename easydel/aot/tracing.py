"""The programs of generating and of training, traced for a mesh from shapes alone."""

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
from easydel.tree import Tree, annotate, flatten, unflatten

# B batch, T tokens, S cache slots


def placed_shapes(model: LanguageModel) -> Tree:
    """Returns the model's parameters as shapes, split over its mesh by the default rules, and tells the model so."""
    leaves, policy = flatten(model.params), model.policy
    assert policy.mesh is not None
    rules = default_rules(policy.axes)
    split, _ = shardings({path: leaf.shape for path, leaf in leaves.items()}, policy.mesh, rules, strict=False)
    params = unflatten({path: _shape(leaf, split[path]) for path, leaf in leaves.items()})
    annotate(model, params)
    return params


def cache_of(model: LanguageModel, batch: int, slots: int) -> Any:
    """Returns the cache of `batch` rows as shapes, split as `generate` splits it."""
    whole, mesh = _whole(model), model.policy.mesh
    assert mesh is not None

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Cached):
            return _shape(leaf, whole)
        split = fit(leaf.array.shape, mesh_axes(leaf, model.policy), mesh)
        return replace(leaf, array=_shape(leaf.array, NamedSharding(mesh, split)))

    empty = jax.eval_shape(lambda: model.init_cache(batch, slots))
    return jax.tree.map(placed, empty, is_leaf=lambda leaf: isinstance(leaf, Cached))


def moments_of(model: LanguageModel, params: Mapping[str, Any], optimizer: Optimizer) -> Any:
    """Returns the optimizer's state as shapes, split as the trained parameters are."""
    trained = _trained(model, params)
    return jax.tree.map(_shape, jax.eval_shape(optimizer.init, trained), moment_shardings(optimizer, trained))


def trace_step(
    model: LanguageModel, params: Mapping[str, Any], batch: int, slots: int, rules: Rules | None = None
) -> jax.stages.Traced:
    """Returns one step of decoding `batch` rows with a cache of `slots`, as `generate` runs it."""
    whole = _whole(model)

    def of(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    cache = cache_of(model, batch, slots)
    state = DecodeState(cache, of(batch, slots), of(batch), of(), of(), of(batch, dtype=jnp.bool_))
    return model.compiled(decode_step).trace(params, state, rules or Rules())


def trace_prefill(model: LanguageModel, params: Mapping[str, Any], batch: int, length: int) -> jax.stages.Traced:
    """Returns the pass over prompts of `length` tokens as one program."""
    prompt = Prompt(np.zeros((batch, length), np.int32), np.ones((batch, length), bool))
    return model.compiled(prefill).trace(params, prompt, None, Rules())


def trace_training(
    model: LanguageModel, params: Mapping[str, Any], optimizer: Optimizer, batch: int, length: int, **options: Any
) -> jax.stages.Traced:
    """Returns a step of training all parameters but buffers; `options` are those of `easydel.train.step`."""
    buffers = model.buffers
    trained, moments = _trained(model, params), moments_of(model, params, optimizer)
    frozen = unflatten({path: leaf for path, leaf in flatten(params).items() if path in buffers})
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=_whole(model))
    tokens = {"input_ids": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
    return train_step(model, optimizer, **options).trace(State(trained, frozen, moments, count), tokens)


def _trained(model: LanguageModel, params: Mapping[str, Any]) -> Tree:
    buffers = model.buffers
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path not in buffers})


def _whole(model: LanguageModel) -> NamedSharding:
    assert model.policy.mesh is not None
    return NamedSharding(model.policy.mesh, PartitionSpec())


def _shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
