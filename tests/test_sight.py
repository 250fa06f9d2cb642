"""A token sees the slots that its sight allows, in whichever row or document it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_ins import FEATURES, HEADS, LENGTH, decoder
from test_parts import CHUNKS, assert_same, inputs, with_values

from easydel import BaseNNXModule
from easydel.config import HFConfig
from easydel.errors import ArgumentError
from easydel.layers.attention import Attention
from easydel.layers.block import Block
from easydel.layers.context import Context
from easydel.layers.rope import Rope
from easydel.ops.attend import Around, Causal, Chunks, Prefix
from easydel.policy import Policy
from easydel.tree import bind, flatten, unflatten


def seen_by(record: Attention, **masks: Any) -> np.ndarray:
    """[T, T]: on which tokens' inputs each token's output depends, in one layer of attention."""
    model, random, T = BaseNNXModule(decoder(Block(record, None)), HFConfig({}), Policy()), np.random.default_rng(0), 11
    values = {path: random.normal(0, 0.4, leaf.shape) for path, leaf in flatten(model.params).items()}
    bind(model, unflatten({path: jnp.asarray(value, jnp.float32) for path, value in values.items()}))
    rows = jnp.asarray(random.normal(size=(T, FEATURES)), jnp.float32)
    layer = model.model.layers[0]
    context = Context(jnp.arange(T)[None], **masks).with_angles(record.ropes())
    jacobian = jax.jacobian(lambda x: layer({"x": x[None]}, context, None)[0]["x"][0])(rows)
    return np.abs(np.asarray(jacobian)).max(axis=(1, 3)) > 0


SIGHTS: dict[str, tuple[Any, Callable[[int, int], bool]]] = {
    "causal": (Causal(), lambda t, s: s <= t),
    "window": (Causal(3), lambda t, s: t - 3 < s <= t),
    "chunks": (Chunks(4), lambda t, s: s <= t and s // 4 == t // 4),
    "around": (Around(), lambda t, s: True),
    "around, limited": (Around(2, 1), lambda t, s: t - 2 <= s <= t + 1),
    "around, limited ahead": (Around(None, 2), lambda t, s: s <= t + 2),
    "prefix": (Prefix(), lambda t, s: s <= t or (s < 5 and t < 5)),
}


@pytest.mark.parametrize("name", SIGHTS)
def test_a_token_depends_on_those_that_its_sight_says(name: str):
    sight, sees = SIGHTS[name]
    masks = {"prefix_BS": jnp.arange(11)[None] < 5} if name == "prefix" else {}
    wanted = [[sees(t, s) for s in range(11)] for t in range(11)]
    np.testing.assert_array_equal(seen_by(Attention(HEADS, Rope(6), sight), **masks), wanted)


def test_a_chunk_begins_anew_with_each_row_and_document():
    """Chunks are those of a token's position: padding and packed documents move where they begin."""
    model, (ids, mask, _) = with_values(CHUNKS), inputs(CHUNKS)
    alone = model(ids[1:, 6:]).logits
    assert_same(model(ids, mask).logits[1:, 6:], alone)
    packed = np.concatenate([ids[:1, :7], ids[1:, 6:]], axis=1)
    segments = np.repeat([[0, 1]], [7, LENGTH - 6], axis=1)
    assert_same(model(packed, segment_ids=segments).logits[:, 7:], alone)


def test_inputs_that_a_model_has_no_use_for_are_refused():
    ids = inputs(CHUNKS)[0]
    for name in ("prefix_mask", "token_type_ids"):
        with pytest.raises(ArgumentError, match=f"takes no {name}"):
            with_values(CHUNKS)(ids, **{name: np.zeros_like(ids)})
