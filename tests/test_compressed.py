"""Attention to entries that stand for several tokens: over many tokens, in one call or in parts, with padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easydel.decoder import empty_slots, make_context
from easydel.layers.compressed import CompressedAttention
from easydel.layers.compressor import Compressor, EntryIndexer
from easydel.layers.norm import RMSNorm
from easydel.layers.rope import Rope
from easydel.policy import Policy
from easydel.tree import bind, flatten, params_of, unflatten

# B batch, T tokens, D model
FEATURES, LENGTH, WINDOW = 12, 300, 5
NORM, ROPE = RMSNorm(1e-6), Rope(4, interleaved=True, trailing=True)
FEW = Compressor(7, 10, ROPE, NORM)
MANY = Compressor(3, 10, ROPE, NORM, overlapping=True)
HEAVY = CompressedAttention(6, 10, 9, WINDOW, ROPE, NORM, 3, 4, FEW)
SPARSE = replace(HEAVY, compressor=MANY, indexer=EntryIndexer(5, 8, 9, replace(MANY, dim=6)))
RECORDS = pytest.mark.parametrize("record", [HEAVY, SPARSE], ids=["heavy", "sparse"])


def made(record: CompressedAttention) -> Any:
    layer, rng = record.build(FEATURES, Policy()), np.random.default_rng(4)
    shapes = flatten(params_of(layer))
    bind(
        layer, unflatten({path: jnp.asarray(rng.normal(0, 0.5, one.shape), one.dtype) for path, one in shapes.items()})
    )
    return layer


def inputs() -> jax.Array:
    return jnp.asarray(np.random.default_rng(5).normal(size=(2, LENGTH, FEATURES)), jnp.float32)


def whole(layer: Any, x_BTD: jax.Array) -> jax.Array:
    return jax.jit(layer)(x_BTD, make_context(x_BTD.shape[:2], None, None, None)[0], None)[0]


def in_parts(layer: Any, x_BTD: jax.Array, mask_BT: jax.Array, ends: list[int]) -> jax.Array:
    """The outputs of calls that end at `ends`, with a cache that is just long enough."""
    length = x_BTD.shape[1]
    slots, cache = empty_slots(2, length), layer.record.cache(2, length, jnp.float32)
    run, outputs = jax.jit(layer), []
    for start, end in zip([0, *ends], [*ends, length], strict=True):
        part_BT = mask_BT[:, start:end]
        context, slots = make_context(part_BT.shape, part_BT, None, slots)
        y_BTD, cache = run(x_BTD[:, start:end], context, cache)
        outputs.append(y_BTD)
    return jnp.concatenate(outputs, axis=1)


@RECORDS
def test_many_tokens_in_parts_are_as_in_one_call(record: CompressedAttention):
    layer, x_BTD = made(record), inputs()
    ends = [134, *range(135, 142), 145]
    found = in_parts(layer, x_BTD, jnp.ones(x_BTD.shape[:2], jnp.int32), ends)
    np.testing.assert_allclose(found, whole(layer, x_BTD), atol=2e-5)


@RECORDS
def test_entries_begin_at_the_first_real_token(record: CompressedAttention):
    layer, x_BTD, before = made(record), inputs()[:, :100], 11
    padded_BTD = jnp.concatenate([jnp.ones((2, before, FEATURES)), x_BTD], axis=1)
    mask_BT = jnp.asarray(np.arange(100 + before) >= before, jnp.int32)[None].repeat(2, axis=0)
    found = in_parts(layer, padded_BTD, mask_BT, [6, 60, 61])[:, before:]
    np.testing.assert_allclose(found, whole(layer, x_BTD), atol=2e-5)


@RECORDS
def test_no_token_sees_a_later_one_and_each_sees_far_back(record: CompressedAttention):
    layer, x_BTD = made(record), inputs()
    jacobian_T = jax.grad(lambda x: jnp.sum(whole(layer, x)[0, 270] ** 2))(x_BTD)[0]
    moved_T = np.abs(jacobian_T).max(axis=-1)
    assert (moved_T[271:] == 0).all()
    assert (moved_T[270 - WINDOW + 1 : 271] > 0).all()
    assert (moved_T[: 270 - 2 * WINDOW] > 0).any()
