"""Attention over a split sequence against attention on one device, and the memory on each device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.gemma2 import CASES as GEMMA2
from parity import make_reference, padded_mask, random_ids

import easydel.ops.ring as rings
from easydel import AutoEasyDeLModelForCausalLM
from easydel.ops.attend import attend
from easydel.ops.ring import Ring, attend_ring
from easydel.ops.scores import Scores
from easydel.ops.sight import Around, Causal
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
    dims: tuple[int, ...],
    T: int,
    scores: Scores,
    sinks: bool,
    segment: int | None,
    monkeypatch: pytest.MonkeyPatch,
):
    """Segments of the second row are longer than those of the first."""
    monkeypatch.setattr(rings, "BLOCK", 4)
    rng = np.random.default_rng(0)
    shapes = {"q": (B, T, N, C), "k": (B, K, T, C), "v": (B, K, T, V), "sinks": (N,)}
    x = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    valid = jnp.arange(T) >= jnp.array([[0], [3]])
    lengths = None if segment is None else jnp.array([[segment], [segment + 4]])
    starts = None if lengths is None else jnp.arange(T) // lengths * lengths
    weights = jnp.asarray(rng.normal(size=(B, T, N, V)), jnp.float32) * valid[:, :, None, None]

    def loss(x: dict[str, Any], ring: Ring | None) -> tuple[jax.Array, jax.Array]:
        options: dict[str, Any] = {"valid_BS": valid, "sinks_N": x["sinks"] if sinks else None, "starts_BT": starts}
        parts = x["q"], x["k"], x["v"]
        out = attend(*parts, scores, **options) if ring is None else attend_ring(*parts, scores, ring, **options)
        return jnp.sum(out * weights), out

    both = [jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(x, r) for r in (ring_of(*dims), None)]
    ((_, out), grads), ((_, expected), expected_grads) = both
    keep = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(out)[keep], np.asarray(expected)[keep], atol=2e-6)
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
        return attend_ring(q, k, v, scores, ring, **options)

    found, expected = (jax.grad(loss, (0, 1, 2))(*parts, how) for how in (split, attend))
    for gradient, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, other, atol=2e-6)


def test_what_a_device_holds_falls_with_their_number():
    def temporary_bytes(devices: int) -> int:
        ring = ring_of(1, 1, 1, devices)
        shapes = [(1, 2048, N, 16), (1, K, 2048, 16), (1, K, 2048, 16)]
        parts = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        total = jax.jit(jax.grad(lambda *parts: attend_ring(*parts, Scores(0.5), ring).sum(), (0, 1, 2)))  # pyright: ignore
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
