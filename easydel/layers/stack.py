"""Runs the layers: one after the other, or as `jax.lax.scan` over parameters stacked along a leading dimension.

Layers with equal records are stacked. Where records repeat with a period (Gemma 3: five sliding layers, one full) each
position of the period has its own stack, named after its first layer, and the scan runs over periods. One stack that
holds all layers has no name: its parameters are `layers/self_attn/...`. A layer unlike its neighbours is not stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.block import Block, BlockLayer, Flow
from easydel.layers.context import Context
from easydel.layers.part import Cached
from easydel.layers.shared import maker
from easydel.policy import Policy
from easydel.sharding import check_heads
from easydel.stored import forms_of
from easydel.tree import bind, params_of, replica

MAX_PERIOD = 16


@dataclass(frozen=True)
class Run:
    """`repeats` repetitions of the same `period` records, from layer `start` on."""

    start: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.repeats

    def layers(self, position: int) -> range:
        """Returns the layers that are stacked together: those at `position` of each period."""
        return range(self.start + position, self.stop, self.period)


def layer_runs(blocks: Sequence[Block]) -> list[Run]:
    """Covers `blocks` from the front, each time with the repetition that covers most."""
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
    """Maps each stack's name ("" if there is just one) to its layers. A layer that stands alone is not stacked."""
    found = {
        str(run.start + position): list(run.layers(position))
        for run in layer_runs(blocks)
        for position in range(run.period)
    }
    return {"": found["0"]} if len(found) == 1 and len(blocks) > 1 else found


def build_layers(blocks: Sequence[Block], features: int, policy: Policy) -> Any:
    """Returns a list of layers, or with `policy.scan_layers` stacked ones. Their parameters have no values yet."""
    if not policy.scan_layers:
        return nnx.List([maker(block, features, policy)() for block in blocks])
    built = {
        name: _stacked(blocks[layers[0]], len(layers), features, policy) for name, layers in stacks(blocks).items()
    }
    return built[""] if "" in built else nnx.Dict(built)


def _stacked(block: Block, layers: int, features: int, policy: Policy) -> BlockLayer:
    layer = maker(block, features, policy)()
    if layers == 1:
        return layer
    shapes = params_of(layer)
    bind(layer, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype), shapes))
    return layer


def layer_caches(blocks: Sequence[Block], batch: int, length: int, policy: Policy) -> Any:
    """Returns an empty cache for every layer, arranged like the layers' parameters."""
    if not policy.scan_layers:
        return [_cache(block, batch, length, policy) for block in blocks]
    first = {name: (blocks[layers[0]], len(layers)) for name, layers in stacks(blocks).items()}
    return {name: _repeated(_cache(block, batch, length, policy), count) for name, (block, count) in first.items()}


def check_head_splits(blocks: Collection[Block], policy: Policy) -> None:
    """Raises ShardingError if the policy's mesh would split a head of some layer."""
    assert policy.mesh is not None
    repeated = all(block.repeats_keys() for block in blocks)
    for heads, kv_heads in {(sizes.heads, sizes.kv_heads) for block in blocks for sizes in block.head_sizes()}:
        kept = kv_heads * (policy.kv_copies(kv_heads) if repeated else 1)
        check_heads(heads, kept if heads % kept == 0 else kv_heads, policy.mesh, policy.axes)


def _cache(block: Block, batch: int, length: int, policy: Policy) -> Any:
    """Returns the block's cache, with room for copies of key and value heads if it makes them."""
    cache = block.cache(batch, length, policy.dtype)
    if not block.repeats_keys():
        return cache

    def with_copies(leaf: Any) -> Any:
        if not isinstance(leaf, Cached) or "kv_head" not in leaf.axes:
            return leaf
        dim = leaf.axes.index("kv_head")
        copies = policy.kv_copies(leaf.array.shape[dim])
        return leaf if copies == 1 else replace(leaf, array=jnp.repeat(leaf.array, copies, axis=dim))

    return jax.tree.map(with_copies, cache, is_leaf=lambda leaf: isinstance(leaf, Cached))


def _repeated(cache: Any, layers: int) -> Any:
    if layers == 1:
        return cache
    return jax.tree.map(lambda leaf: jnp.zeros((layers, *leaf.shape), leaf.dtype), cache)


def run_layers(
    layers: Any, blocks: Sequence[Block], policy: Policy, flow: Flow, context: Context, caches: Any
) -> tuple[Flow, Any]:
    """Returns the flow after the last layer, and the layers' new caches (None in, None out)."""
    if not policy.scan_layers:
        return _loop(layers, Run(0, 1, len(blocks)), policy, flow, context, caches)
    whole = "" in stacks(blocks)
    new_caches = {}
    for run in layer_runs(blocks):
        names = [""] if whole else [str(run.start + position) for position in range(run.period)]
        group = [layers] if whole else [layers[name] for name in names]
        group_caches = None if caches is None else [caches[name] for name in names]
        passing = _loop if run.repeats == 1 else _scan
        flow, group_caches = passing(group, run, policy, flow, context, group_caches)
        new_caches |= dict(zip(names, group_caches or [None] * len(names), strict=True))
    return flow, None if caches is None else new_caches


def run_layer(
    layer: Any, number: int, policy: Policy, flow: Flow, context: Context, caches: list[Any] | None
) -> tuple[Flow, Any]:
    """Runs the layer with this number alone; `caches` has its cache, if there is one."""
    return _loop([layer], Run(number, 1, 1), policy, flow, context, caches)


def _loop(layers: Any, run: Run, policy: Policy, flow: Flow, context: Context, caches: Any) -> tuple[Flow, Any]:
    """Runs one layer after the other. Equal layers are traced once, as calls of one function that XLA inlines."""
    calls: dict[Any, Any] = {}
    new_caches = []
    for index, layer in enumerate(layers):
        params = params_of(layer)
        # the layer's record, its parameters' names, and what else its modules hold (adapters, codes)
        kind = (jax.tree.structure(layer), *forms_of(layer).items())
        if kind not in calls:
            calls[kind] = jax.jit(_as_function(layer, policy, scanned=False))
        own = context.of_layer(run.start + index)
        flow, cache = calls[kind](params, flow, own, None if caches is None else caches[index])
        new_caches.append(cache)
    return flow, None if caches is None else new_caches


def _scan(group: list[Any], run: Run, policy: Policy, flow: Flow, context: Context, caches: Any) -> tuple[Flow, Any]:
    """Runs periods of layers by `jax.lax.scan`.

    Caches are carried, and layers write into them: as results that the scan collects, they would be copied.
    """
    inputs = ([params_of(layer) for layer in group], _by_period(context.each, run))
    functions = [_as_function(layer, policy, scanned=True) for layer in group]

    def period(flow: Flow, inputs: Any, caches: list[Any]) -> tuple[Flow, list[Any]]:
        params, each = inputs
        new = []
        for position, (call, own, cache) in enumerate(zip(functions, params, caches, strict=True)):
            mine = replace(context, each={name: part[position] for name, part in each.items()})
            flow, cache = call(own, flow, mine, cache)
            new.append(cache)
        return flow, new

    def carried(carry: tuple[Flow, Any], sliced: tuple[jax.Array, Any]) -> tuple[tuple[Flow, Any], None]:
        (flow, stacked), (index, inputs) = carry, sliced
        own = jax.tree.map(lambda leaf: Cached.taken(leaf, index, policy), stacked, is_leaf=_is_cached)
        flow, own = period(flow, inputs, own)
        return (flow, jax.tree.map(Cached.put_back, own, is_leaf=_is_cached)), None

    empty = [None] * len(group)
    if any(name not in flow for layer in group for name in layer.record.hands_on()):
        flow = _with_room(period, flow, inputs, empty if caches is None else caches)
    if caches is None:
        return jax.lax.scan(lambda flow, own: (period(flow, own, empty)[0], None), flow, inputs)
    if any(layer.record.is_fresh(cache) for layer, cache in zip(group, caches, strict=True)):
        # the first call adds an encoder's keys and values to each cache
        return jax.lax.scan(lambda flow, own: period(flow, *own), flow, (inputs, caches))
    carry, _ = jax.lax.scan(carried, (flow, caches), (jnp.arange(run.repeats), inputs))
    return carry


def _by_period(each: Mapping[str, jax.Array], run: Run) -> dict[str, jax.Array]:
    """Returns the inputs for every layer, [layers, ...], as [repeats, period, ...] for the layers of one run."""
    own = {name: part[run.start : run.stop] for name, part in each.items()}
    return {name: part.reshape(run.repeats, run.period, *part.shape[1:]) for name, part in own.items()}


def _with_room(period: Callable[..., Any], flow: Flow, inputs: Any, caches: Any) -> Flow:
    """Returns the flow with zeros for values that the period's layers hand on: a scan carries them from the start."""
    first = jax.tree.map(lambda leaf: leaf[0], (inputs, caches))
    after = jax.eval_shape(lambda flow, own: period(flow, *own)[0], flow, first)
    return {**jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), after), **flow}


def _is_cached(leaf: Any) -> bool:
    return isinstance(leaf, Cached)


def _as_function(layer: BlockLayer, policy: Policy, *, scanned: bool) -> Any:
    """Returns the layer as a function of its parameters, recomputed in the backward pass as `policy.remat` says."""

    def call(params: Any, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        own = replica(layer)
        bind(own, params)
        return own(flow, context, cache)

    if policy.remat is None:
        return call
    # prevent_cse keeps XLA from merging the recomputation with the original; inside a scan there is nothing to merge
    return jax.checkpoint(call, policy=policy.remat_policy, prevent_cse=not scanned)
