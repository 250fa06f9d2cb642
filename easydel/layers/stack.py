"""Running the layers: one after the other, or as `jax.lax.scan` over parameters stacked along a leading dimension.

Layers with equal records are stacked. Where records repeat with a period (Gemma 3: five sliding layers, one full) each
position of the period has its own stack, named after its first layer, and the scan runs over periods. One stack that
holds all layers has no name: its parameters are `layers/self_attn/...`. A layer unlike its neighbours stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.block import Block, BlockLayer
from easydel.layers.context import Context
from easydel.layers.rope import Rope
from easydel.policy import Policy
from easydel.tree import bind, flatten, params_of, replica

MAX_PERIOD = 16


@dataclass(frozen=True)
class Run:
    """`repeats` times the same `period` records, from layer `start` on."""

    start: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.repeats

    def layers(self, position: int) -> range:
        """The layers that are stacked together: those at `position` of each period."""
        return range(self.start + position, self.stop, self.period)


def layer_runs(blocks: Sequence[Block]) -> list[Run]:
    """Cover `blocks` from the front, each time with the repetition that covers most."""
    found: list[Run] = []
    start = 0
    while start < len(blocks):
        candidates = [_repetition(blocks, start, period) for period in range(1, MAX_PERIOD + 1)]
        repeated = [run for run in candidates if run.repeats > 1]
        best = max(repeated, key=lambda run: (run.stop, -run.period), default=Run(start, 1, 1))
        found.append(best)
        start = best.stop
    return found


def _repetition(blocks: Sequence[Block], start: int, period: int) -> Run:
    stop = start + period
    while stop + period <= len(blocks) and blocks[stop : stop + period] == blocks[start : start + period]:
        stop += period
    return Run(start, period, (stop - start) // period)


def stacks(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """Name of each stack ("" if there is just one) -> the layers in it. One layer alone is not stacked."""
    found = {
        str(run.start + position): list(run.layers(position))
        for run in layer_runs(blocks)
        for position in range(run.period)
    }
    return {"": found["0"]} if len(found) == 1 and len(blocks) > 1 else found


def build_layers(blocks: Sequence[Block], features: int, policy: Policy) -> Any:
    """A list of layers, or with `policy.scan_layers` the stacked ones, with parameters that have no value yet."""
    if not policy.scan_layers:
        return nnx.List([replica(_template(block, features, policy)) for block in blocks])
    built = {
        name: _stacked(blocks[layers[0]], len(layers), features, policy) for name, layers in stacks(blocks).items()
    }
    return built[""] if "" in built else nnx.Dict(built)


@lru_cache
def _template(block: Block, features: int, policy: Policy) -> BlockLayer:
    """A layer to make replicas of, for equal blocks and for models alike: NNX builds slowly."""
    return block.build(features, policy)


def _stacked(block: Block, layers: int, features: int, policy: Policy) -> BlockLayer:
    layer = replica(_template(block, features, policy))
    if layers == 1:
        return layer
    shapes = params_of(layer)
    bind(layer, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype), shapes))
    return layer


def layer_caches(blocks: Sequence[Block], batch: int, length: int, policy: Policy) -> Any:
    """An empty cache for every layer, arranged like the layers' parameters."""
    if not policy.scan_layers:
        return [block.cache(batch, length, policy.dtype) for block in blocks]
    first = {name: (blocks[layers[0]], len(layers)) for name, layers in stacks(blocks).items()}
    return {name: _repeated(block.cache(batch, length, policy.dtype), count) for name, (block, count) in first.items()}


def _repeated(cache: Any, layers: int) -> Any:
    if layers == 1:
        return cache
    return jax.tree.map(lambda leaf: jnp.zeros((layers, *leaf.shape), leaf.dtype), cache)


def run_layers(
    layers: Any, blocks: Sequence[Block], policy: Policy, x_BTD: jax.Array, context: Context, caches: Any
) -> tuple[jax.Array, Any]:
    """The output of the last layer, and the caches after it (None in, None out)."""
    for block in blocks:
        position = getattr(block.mixer, "position", None)
        if isinstance(position, Rope):
            context.angles(position)
    context = replace(context, frozen=True)
    if not policy.scan_layers:
        return _loop(layers, policy, x_BTD, context, caches)
    whole = "" in stacks(blocks)
    new_caches = {}
    for run in layer_runs(blocks):
        names = [""] if whole else [str(run.start + position) for position in range(run.period)]
        group = [layers] if whole else [layers[name] for name in names]
        group_caches = None if caches is None else [caches[name] for name in names]
        passed = _loop if run.repeats == 1 else _scan
        x_BTD, group_caches = passed(group, policy, x_BTD, context, group_caches)
        new_caches |= dict(zip(names, group_caches or [None] * len(names), strict=True))
    return x_BTD, None if caches is None else new_caches


def _loop(layers: Any, policy: Policy, x_BTD: jax.Array, context: Context, caches: Any) -> tuple[jax.Array, Any]:
    """One layer after the other. Those of a kind are traced once: as calls of one function, which XLA inlines."""
    calls: dict[Any, Any] = {}
    new_caches = []
    for index, layer in enumerate(layers):
        params = params_of(layer)
        kind = (layer.record, *sorted(flatten(params)))
        if kind not in calls:
            calls[kind] = jax.jit(_as_function(layer, policy, context, scanned=False))
        x_BTD, cache = calls[kind](params, x_BTD, None if caches is None else caches[index])
        new_caches.append(cache)
    return x_BTD, None if caches is None else new_caches


def _scan(group: list[Any], policy: Policy, x_BTD: jax.Array, context: Context, caches: Any) -> tuple[jax.Array, Any]:
    """Caches are carried and updated where they are: collected as results of the scan, they would be copied."""
    params = [params_of(layer) for layer in group]
    repeats = jax.tree.leaves(params)[0].shape[0]

    def period(x: jax.Array, params: list[Any], caches: list[Any]) -> tuple[jax.Array, list[Any]]:
        new = []
        for layer, own, cache in zip(group, params, caches, strict=True):
            x, cache = _as_function(layer, policy, context, scanned=True)(own, x, cache)
            new.append(cache)
        return x, new

    def carried(carry: tuple[jax.Array, Any], sliced: tuple[jax.Array, Any]) -> tuple[tuple[jax.Array, Any], None]:
        (x, stacked), (index, params) = carry, sliced
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)
        x, own = period(x, params, own)
        return (x, jax.tree.map(lambda all, one: _put(all, one, index), stacked, own)), None

    if caches is None:
        return jax.lax.scan(lambda x, own: (period(x, own, [None] * len(group))[0], None), x_BTD, params)
    if any(
        layer.record.cross is not None and cache["cross"] is None for layer, cache in zip(group, caches, strict=True)
    ):
        # the first call adds to each cache what it makes of the encoder
        return jax.lax.scan(lambda x, own: period(x, *own), x_BTD, (params, caches))
    carry, _ = jax.lax.scan(carried, (x_BTD, caches), (jnp.arange(repeats), params))
    return carry


def _put(stacked: jax.Array, one: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, one.astype(stacked.dtype), index, 0)


def _as_function(layer: BlockLayer, policy: Policy, context: Context, *, scanned: bool) -> Any:
    """The layer as a function of its parameters, recomputed in the backward pass as `policy.remat` says."""

    def call(params: Any, x: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        own = replica(layer)
        bind(own, params)
        return own(x, context, cache)

    if policy.remat is None:
        return call
    # prevent_cse keeps XLA from merging the recomputation with the original; inside a scan there is nothing to merge
    return jax.checkpoint(call, policy=policy.remat_policy, prevent_cse=not scanned)
