"""A single query of each row, and keys whose slots are split over devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easydel.ops.attend import Around, Causal, Scores, attend, choose
from easydel.ops.ring import Ring
from easydel.sharding import make_mesh

# B batch, N heads, K kv heads, C head channels, V value channels, S slots
B, N, K, C, V, S, USED = 2, 4, 2, 8, 6, 48, 29


@pytest.mark.parametrize("dims", [(1, 1, 1, 8), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize(
    ("scores", "given"),
    [
        (Scores(0.3), ("valid_BS",)),
        (Scores(0.3, softcap=2.0, sight=Causal(11)), ("valid_BS", "sinks_N")),
        (Scores(0.3), ("valid_BS", "starts_BT")),
        (Scores(0.3, sight=Around()), ("valid_BS",)),
    ],
    ids=["all", "window, cap and sinks", "chunks", "out of order"],
)
def test_weighted_values_are_those_of_all_keys_on_one_device(dims: Any, scores: Scores, given: tuple[str, ...]):
    random = np.random.default_rng(3)
    shapes = ((B, 1, N, C), (B, K, S, C), (B, K, S, V))
    q, k, v = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    masks = {
        "valid_BS": jnp.asarray((random.random((B, S)) < 0.8) & (np.arange(S) <= USED)).at[:, USED].set(True),
        "sinks_N": jnp.asarray(random.normal(size=N), jnp.float32),
        "starts_BT": jnp.array([[5], [17]]),
    }
    masks = {name: masks[name] for name in given}
    ring = Ring(make_mesh(dims), ("dp", "fsdp"), "sp", "tp", "tp")

    def computed(ring: Ring | None, offset: jax.Array) -> jax.Array:
        return attend(q, k, v, scores, offset=offset, **masks, mesh=ring and ring.mesh, ring=ring)

    split, whole = (jax.jit(computed, static_argnums=0)(how, jnp.int32(USED)) for how in (ring, None))
    np.testing.assert_allclose(split, whole, atol=2e-6)


@pytest.mark.parametrize(
    ("queries", "slots", "heads", "expected"), [(1, 48, 4, "split"), (2, 48, 4, "chunked"), (1, 47, 4, "chunked")]
)
def test_it_is_chosen_for_single_queries_and_slots_that_can_be_split(
    queries: int, slots: int, heads: int, expected: str
):
    ring = Ring(make_mesh((2, 1, 2, 2)), ("dp", "fsdp"), "sp", "tp", "tp")
    q, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, queries, heads, C), (B, K, slots, C)))
    given: Any = {"whole": False, "masked": True, "bias": None, "ring": ring, "several": True}
    assert choose("cpu", q, k, k, Scores(1.0), **given) == expected
