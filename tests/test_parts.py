"""Every idea that blocks can be made of runs through cache, scan, mesh, prefill by layer, and rewind."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_ins import AXES, BATCH, LENGTH, RECORDS, VOCAB

from easydel import BaseNNXModule
from easydel.config import HFConfig
from easydel.generate import PromptCache, prefill_by_layer
from easydel.layers.block import Block
from easydel.layers.mlp import GLU
from easydel.layers.short_conv import ShortConv
from easydel.policy import Policy
from easydel.sharding import PartitionAxis, default_rules, make_mesh
from easydel.sharding.placement import shardings
from easydel.tree import bind, flatten, unflatten

CHUNKS = "chunks, keys for values, weighted inputs"
# how far back a cache of 200 slots goes after 150 tokens, where it is not all the way
NEW = 4
MORE: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None}
REWINDS = {"mixers beside each other": 0, "keys of a window handed on": 65, CHUNKS: 65}


@cache
def loop_params(name: str) -> dict[str, Any]:
    """Random values by path; norms and biases too."""
    model, keys = made(name), np.random.default_rng(len(name))

    def values(leaf: Any) -> Any:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return keys.integers(0, 99, leaf.shape) if whole else keys.normal(0, 0.4, leaf.shape)

    return {path: jnp.asarray(values(leaf), leaf.dtype) for path, leaf in flatten(model.params).items()}


@cache
def made(name: str, policy: Policy = Policy()) -> BaseNNXModule:  # noqa: B008 (frozen)
    return BaseNNXModule(RECORDS[name], HFConfig({}), policy)


def with_values(name: str, policy: Policy = Policy()) -> BaseNNXModule:  # noqa: B008 (frozen)
    """The model for `policy`, with the same values whatever that is."""
    model, values = made(name, policy), loop_params(name)

    def value(paths: list[str], leaf: Any) -> jax.Array:
        parts = [values[path] for path in paths]
        return parts[0] if parts[0].shape == leaf.shape else jnp.stack(parts)

    paths, leaves = model.canonical_paths(), flatten(model.params)
    placed = {path: value(paths[path], leaf) for path, leaf in leaves.items()}
    if policy.mesh is not None:
        shapes = {path: leaf.shape for path, leaf in leaves.items()}
        where, _ = shardings(shapes, policy.mesh, default_rules(policy.axes), strict=False)
        placed = {path: jax.device_put(leaf, where[path]) for path, leaf in placed.items()}
    bind(model, unflatten(placed))
    return model


def inputs(name: str, rows: int = BATCH) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    ids = np.random.default_rng(5).integers(1, VOCAB, (rows, LENGTH))
    mask = np.ones_like(ids)
    mask[1:, :6] = 0
    more = {"prefix_mask": ((np.arange(LENGTH) < 9) & (mask == 1)).astype(np.int32)} if "prefix" in name else {}
    return ids, mask, more


def logits(model: BaseNNXModule, name: str) -> np.ndarray:
    ids, mask, more = inputs(name)
    return np.where(mask[..., None], model(ids, mask, **more).logits, 0)


@cache
def expected(name: str) -> np.ndarray:
    return logits(with_values(name), name)


def assert_same(ours: Any, theirs: Any) -> None:
    assert np.isfinite(theirs).all()
    assert np.std(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("name", RECORDS)
def test_calls_with_a_cache_equal_one_without(name: str):
    model = with_values(name, Policy(scan_layers=True))
    ids, mask, more = inputs(name)
    parts, cache, start = [], model.init_cache(BATCH, LENGTH), 0
    for size in (9, 9, *[1] * (LENGTH - 18)):  # the whole prefix comes first: what is read cannot see it later
        part = slice(start, start + size)
        own = {key: value[:, part] for key, value in more.items()}
        out = model(ids[:, part], mask[:, part], cache=cache, **own)
        cache, start = out.cache, start + size
        parts.append(out.logits)
    assert_same(np.where(mask[..., None], jnp.concatenate(parts, axis=1), 0), expected(name))


@pytest.mark.parametrize("name", RECORDS)
def test_scanned_layers_equal_a_loop_also_in_gradients(name: str):
    ids, mask, more = inputs(name)

    def gradient(policy: Policy) -> tuple[dict[str, Any], jax.Array]:
        model = with_values(name, policy)
        weights = np.random.default_rng(1).normal(size=(*ids.shape, VOCAB)) * mask[..., None]
        leaves = flatten(model.params)
        fixed = {path: leaves.pop(path) for path in model.buffers}

        def total(learned: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            found = model.apply(unflatten(learned | fixed), ids, mask, **more).logits
            return jnp.sum(found * weights), found

        by, found = jax.jit(jax.grad(total, has_aux=True))(leaves)
        paths = {path: names for path, names in model.canonical_paths().items() if path in by}
        return {path: (np.asarray(by[path]), names) for path, names in paths.items()}, found

    looped = {path: leaf for path, (leaf, _) in gradient(Policy())[0].items()}
    scanned, found = gradient(Policy(scan_layers=True, remat="everything"))
    assert_same(np.where(mask[..., None], found, 0), expected(name))
    for leaf, names in scanned.values():
        parts = [looped[one] for one in names]
        own = parts[0] if parts[0].shape == leaf.shape else np.stack(parts)
        np.testing.assert_allclose(leaf, own, atol=1e-4 * float(np.abs(own).max() + 1e-3), rtol=0)


@pytest.mark.parametrize("name", RECORDS)
def test_a_mesh_gives_what_one_device_gives(name: str):
    axes = PartitionAxis().resolve(AXES)
    policy = Policy(mesh=make_mesh((1, 2, 2, 2), AXES), axes=axes, scan_layers=True)
    model = with_values(name, policy)
    assert_same(logits(model, name), expected(name))
    assert_likeliest(name, model.generate(inputs(name)[0][:, :-NEW], **MORE).sequences)


def test_a_block_without_a_mixer_goes_back_as_far_as_its_other_parts():
    assert Block(None, GLU(hidden=8, act="silu")).rewinds(200, 150) is None
    assert Block(None, ShortConv(channels=8, width=3)).rewinds(200, 150) == 0


@pytest.mark.parametrize("name", RECORDS)
def test_a_conversation_goes_back_as_far_as_every_part_can(name: str, monkeypatch: pytest.MonkeyPatch):
    """Prompts are read layer by layer, and each layer gets what belongs to it."""
    monkeypatch.setattr(prefill_by_layer, "REPEATS", 1)  # also of so few layers
    model = with_values(name)
    assert model.record.rewinds(200, 150) == REWINDS.get(name)
    kept, said = PromptCache(), inputs(name, 1)[0][:, : -2 * NEW]
    said = model.generate(said, prompt_cache=kept, **MORE).sequences
    assert_likeliest(name, said)
    said = np.concatenate([said[:, :-3], [[7, 8]]], axis=1)
    assert_likeliest(name, model.generate(said, prompt_cache=kept, **MORE).sequences)
    assert kept.reused == (0 if REWINDS.get(name) == 0 else said.shape[1] - 2)


def assert_likeliest(name: str, said: np.ndarray) -> None:
    """The last tokens of `said` are those that one pass over all of it calls for."""
    length, rows = said.shape[1], np.broadcast_to(said, (BATCH, said.shape[1]))
    behind = [(0, 0), (0, LENGTH - length)]
    ids, mask = np.pad(rows, behind), np.pad(np.ones_like(rows), behind)
    likeliest = np.argmax(with_values(name)(ids, mask).logits, axis=-1)[:, length - 1 - NEW : length - 1]
    np.testing.assert_array_equal(rows[:, -NEW:], likeliest)
