"""Attention over a split sequence against attention on one device, and the memory on each device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.gemma2 import CASES as GEMMA2
from parity import make_reference, padded_mask, random_ids

import easydel.ops.ring_pieces as ring_pieces
from easydel import AutoEasyDeLModelForCausalLM
from easydel.ops.attend import attend
from easydel.ops.ring import Pieces, Ring, attend_ring
from easydel.ops.ring_pieces import PlainPieces
from easydel.ops.scores import Scores
from easydel.ops.sight import Around, Causal, Sight, order_seen
from easydel.ops.splash_pieces import SplashPieces, distances
from easydel.sharding import make_mesh

B, K, G, C, V = 2, 2, 3, 5, 4
N = K * G


def ring_of(*dims: int) -> Ring:
    return Ring(make_mesh(dims), ("dp", "fsdp"), "sp", "tp", "tp")


CASES = [
    ((1, 1, 1, 8), 48, Scores(0.5), False, None),
    ((1, 1, 2, 4), 64, Scores(0.5, softcap=0.7, sight=Causal(11)), True, None),
    ((2, 1, 2, 2), 48, Scores(0.5, sight=Around()), True, None),
    ((1, 1, 2, 4), 28, Scores(0.5), True, None),
    ((1, 1, 2, 4), 64, Scores(0.5), True, 13),
    ((2, 1, 1, 4), 28, Scores(0.5, sight=Around(8)), False, 5),
]
NAMES = ["8", "window", "both ways", "odd pieces", "segments", "segments both ways"]


@pytest.mark.parametrize(("dims", "T", "scores", "sinks", "segment"), CASES, ids=NAMES)
def test_values_and_gradients_equal_one_device(
    dims: tuple[int, ...], T: int, scores: Scores, sinks: bool, segment: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ring_pieces, "BLOCK", 4)
    check(PlainPieces(scores), ring_of(*dims), T, sinks=sinks, segment=segment)


SPLASH = {
    "one row, nothing masked": (Scores(0.15), {"rows": 1, "padded": False}),
    "all at once": (Scores(0.5, softcap=1.7, sight=Causal(200)), {"sinks": True, "segment": 290}),
}


@pytest.mark.parametrize("name", SPLASH)
def test_with_the_tpu_kernel_values_and_gradients_equal_one_device(name: str):
    """Pieces of 128 tokens: some are seen wholly, some in part, some not at all."""
    scores, options = SPLASH[name]
    masked = options.get("padded", True)
    check(SplashPieces(scores, masked=masked, interpret=True), ring_of(1, 1, 1, 2), 512, channels=(64, 80), **options)


@pytest.mark.parametrize(
    "sight", [Causal(), Causal(1), Causal(9), Around(), Around(3, 0), Around(8, 17), Around(None, 4)]
)
def test_distances_of_pieces_that_are_seen_in_part(sight: Sight):
    length = 4
    cut, whole = distances(sight, length)
    reachable = range(-40, 41, length)
    seen = {distance: order_seen(length, length, distance, sight) for distance in reachable}
    every = {distance: True if mask is None else bool(mask.all()) for distance, mask in seen.items()}
    some = {distance: True if mask is None else bool(mask.any()) for distance, mask in seen.items()}
    assert cut == [distance for distance in reachable if some[distance] and not every[distance]]
    assert whole == any(every.values())


def check(
    pieces: Pieces,
    ring: Ring,
    T: int,
    *,
    channels: tuple[int, int] = (C, V),
    rows: int = B,
    padded: bool = True,
    sinks: bool = False,
    segment: int | None = None,
) -> None:
    """Segments of the second row are longer than those of the first."""
    rng = np.random.default_rng(0)
    own, values = channels
    shapes = {"q": (rows, T, N, own), "k": (rows, K, T, own), "v": (rows, K, T, values), "sinks": (N,)}
    x = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    valid = jnp.arange(T) >= jnp.array([[0], [3]])[:rows]
    lengths = None if segment is None else jnp.array([[segment], [segment + 4]])
    starts = None if lengths is None else jnp.arange(T) // lengths * lengths
    weights = jnp.asarray(rng.normal(size=(rows, T, N, values)), jnp.float32) * valid[:, :, None, None]

    def loss(x: dict[str, Any], ring: Ring | None) -> tuple[jax.Array, jax.Array]:
        options: dict[str, Any] = {"sinks_N": x["sinks"] if sinks else None, "starts_BT": starts}
        options["valid_BS"] = valid if padded else None
        one = partial(attend, scores=pieces.scores)
        compute = one if ring is None else partial(attend_ring, pieces=pieces, ring=ring)
        out = compute(x["q"], x["k"], x["v"], **options)
        return jnp.sum(out * weights), out

    both = [jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(x, r) for r in (ring, None)]
    ((_, out), grads), ((_, expected), expected_grads) = both
    keep = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(out)[keep], np.asarray(expected)[keep], atol=2e-6)
    assert np.isfinite(out).all()
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, expected_grads[name], atol=1e-5, err_msg=name)


def test_gradients_of_queries_that_see_no_key_equal_one_device():
    rng, ring = np.random.default_rng(0), ring_of(1, 1, 1, 4)
    parts = [
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 16, N, C), (1, K, 16, C), (1, K, 16, V))
    ]
    weights, valid = jnp.asarray(rng.normal(size=(1, 16, N, V)), jnp.float32), jnp.zeros((1, 16), bool)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, how: Any) -> jax.Array:
        return jnp.sum(weights * how(q, k, v, Scores(0.5), valid_BS=valid))

    def split(q: Any, k: Any, v: Any, scores: Scores, **options: Any) -> jax.Array:
        return attend_ring(q, k, v, PlainPieces(scores), ring, **options)

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    found, expected = (gradients(*parts, how) for how in (split, attend))
    for gradient, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, other, atol=2e-6)


def test_what_a_device_holds_falls_with_their_number():
    def temporary_bytes(devices: int) -> int:
        ring = ring_of(1, 1, 1, devices)
        shapes = [(1, 2048, N, 16), (1, K, 2048, 16), (1, K, 2048, 16)]
        parts = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        total = jax.jit(jax.grad(lambda *parts: attend_ring(*parts, PlainPieces(Scores(0.5)), ring).sum(), (0, 1, 2)))  # pyright: ignore
        memory: Any = total.lower(*parts).compile().memory_analysis()
        return memory.temp_size_in_bytes

    two, eight = temporary_bytes(2), temporary_bytes(8)
    assert eight < 0.3 * two


def test_sizes_that_allow_no_ring():
    ring = ring_of(1, 1, 2, 4)
    assert ring.spec(1, 32, 6, 2) is not None
    assert ring.spec(1, 33, 6, 2) is None, "the length is not divisible"
    assert ring.spec(1, 32, 6, 3) is None, "kv heads would be whole where heads are split"
    assert ring_of(1, 4, 2, 1).spec(4, 32, 6, 2) is None, "the sequence axis has one device"


def test_a_models_logits_and_gradients_equal_one_device(tmp_path: Path):
    make_reference(GEMMA2[0], tmp_path)
    ids = random_ids(GEMMA2[0], length=16)
    mask = padded_mask(*ids.shape)

    def run(**options: Any) -> tuple[np.ndarray, Any, str]:
        model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, scan_layers=True, **options)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(params, ids, mask).logits * mask[..., None]
            return jnp.mean(logits**2), logits

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()
        (_, logits), gradients = compiled(params)
        return np.asarray(logits), gradients, str(compiled.as_text())

    logits, gradients, text = run(auto_shard_params=True, sharding_axis_dims=(1, 1, 2, 4))
    expected, expected_gradients, _ = run()
    assert "collective-permute" in text
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, float(np.abs(theirs).max())))
