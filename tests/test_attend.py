"""Attention by chunks: its results against plain softmax attention, and the memory it holds and reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import plain

import easydel.ops.chunked as chunked
from easydel.ops.attend import attend, attend_fused, choose
from easydel.ops.ring import Ring
from easydel.ops.scores import Scores
from easydel.ops.sight import Around, Causal, is_causal
from easydel.sharding import make_mesh

# B batch, T queries, S keys, N heads, K kv heads, C head channels, V value channels
B, K, G, C, V = 2, 2, 3, 5, 4
N = K * G


def inputs(T: int, S: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"q": (B, T, N, C), "k": (B, K, S, C), "v": (B, K, S, V), "row": (B, N, 1, S), "table": (1, N, T, S)}
    made = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return made | {
        "sinks": jnp.asarray(rng.normal(size=N), jnp.float32),
        "valid": jnp.arange(S) >= jnp.array([[0], [2]]),
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    """So that small arrays take the ways of large ones: several chunks in each program, and one left over."""
    monkeypatch.setattr(chunked, "CHUNK", 4)
    monkeypatch.setattr(chunked, "PROGRAMS", 2)
    monkeypatch.setattr(chunked, "SHORTEST_PREFIX", 8)
    monkeypatch.setattr(chunked, "LOOPED_FROM", 2)


def prefix_bias(start: Any, queries: int) -> jax.Array:
    """As a mask: the first seven tokens see each other, later ones what is before them."""
    query, key = start + jnp.arange(queries)[:, None], jnp.arange(19)
    return jnp.where((key <= query) | (key < 7), 0.0, -1e30)[None, None]


# segments of 3, 9, 1, 4 and 2 tokens, and of 14 and 5
STARTS = jnp.repeat(jnp.array([[0, 3, 12, 13, 17], [0, 0, 0, 0, 14]]), jnp.array([3, 9, 1, 4, 2]), axis=1)
STARTS = STARTS.at[1, 14:17].set(14)
CASES: dict[str, tuple[Scores, dict[str, Any]]] = {
    "causal": (Scores(0.4), {}),
    "both ways": (Scores(0.4, sight=Around()), {}),
    "window": (Scores(0.4, sight=Causal(5)), {}),
    "softcap": (Scores(1.4, softcap=0.7), {}),
    "sinks": (Scores(0.4), {"sinks": True}),
    "window, sinks, softcap, a bias per key": (Scores(0.4, 2.0, Causal(5)), {"sinks": True, "bias": "row"}),
    "a bias per query and key": (Scores(0.4), {"bias": "table"}),
    "a window and a bias per query and key": (Scores(0.4, sight=Causal(5)), {"bias": "table"}),
    "a prefix seen both ways": (Scores(0.4, sight=Around()), {"bias": prefix_bias}),
    "segments": (Scores(0.4), {"starts": STARTS}),
    "segments both ways": (Scores(0.4, sight=Around()), {"starts": STARTS}),
    "segments in a window, softcap, sinks, a bias": (
        Scores(0.4, 2.0, Causal(5)),
        {"starts": STARTS, "sinks": True, "bias": "table"},
    ),
}


BATCHED = ["window, sinks, softcap, a bias per key", "a prefix seen both ways", "segments"]


@pytest.mark.parametrize(("name", "mesh"), [*((name, False) for name in CASES), *((name, True) for name in BATCHED)])
def test_values_and_gradients_equal_plain_attention(name: str, mesh: bool):
    scores, options = CASES[name]
    x = inputs(19, 19)
    bias = x.get(str(options.get("bias")), options.get("bias"))
    sinks, starts = options.get("sinks", False), options.get("starts")
    segments = {} if starts is None else {"starts": starts}
    grid = jax.make_mesh((2,), ("tp",)) if mesh else None
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, 19, N, V)), jnp.float32)
    weights = weights * x["valid"][:, :, None, None]  # rows of padding see nothing, and mean nothing

    def ours(x: dict[str, Any]) -> jax.Array:
        own = x.get(str(options.get("bias")), options.get("bias"))
        sinks_N = x["sinks"] if sinks else None
        masks = {"valid_BS": x["valid"], "sinks_N": sinks_N, "starts_BT": starts}
        return attend(x["q"], x["k"], x["v"], scores, bias=own, mesh=grid, **masks)

    def theirs(x: dict[str, Any]) -> jax.Array:
        own = prefix_bias(0, 19) if callable(bias) else x.get(str(options.get("bias")))
        return plain(x | segments, scores, bias=own, sinks=sinks)

    def total(function: Any, x: dict[str, Any]) -> Any:
        def weighed(floats: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            out = function(floats | {"valid": x["valid"]})
            return jnp.sum(out * weights), out

        return jax.value_and_grad(weighed, has_aux=True)({n: part for n, part in x.items() if n != "valid"})

    (_, out), grads = jax.jit(lambda x: total(ours, x))(x)
    (_, expected), expected_grads = jax.jit(lambda x: total(theirs, x))(x)
    keep = np.asarray(x["valid"])
    np.testing.assert_allclose(np.asarray(out)[keep], np.asarray(expected)[keep], atol=2e-6)
    for part, gradient in grads.items():
        np.testing.assert_allclose(gradient, expected_grads[part], atol=5e-6, err_msg=part)


@pytest.mark.parametrize("looped", [True, False])
def test_forward_and_second_derivatives_equal_those_of_plain_attention(looped: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunked, "LOOPED_FROM", 2 if looped else 100)
    scores, names = Scores(1.4, softcap=2.0, sight=Causal(5)), ("q", "k", "v", "sinks")
    point, direction = ({name: inputs(11, 11, seed)[name] for name in names} for seed in (0, 1))

    def ours(x: dict[str, jax.Array]) -> jax.Array:
        return attend(x["q"], x["k"], x["v"], scores, sinks_N=x["sinks"])

    def theirs(x: dict[str, jax.Array]) -> jax.Array:
        return plain(x | {"valid": jnp.ones((B, 11), bool)}, scores, sinks=True)

    def derivatives(function: Any) -> Any:
        gradient = jax.grad(lambda x: jnp.sum(function(x) ** 2))
        return jax.jit(lambda: [jax.jvp(f, (point,), (direction,))[1] for f in (function, gradient)])()

    for found, expected in zip(*(jax.tree.leaves(derivatives(f)) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scores", [Scores(0.4), Scores(0.4, sight=Causal(5)), Scores(0.4, sight=Around())], ids=str)
@pytest.mark.parametrize("T", [1, 6])
def test_later_queries_of_a_long_cache(T: int, scores: Scores):
    x, attention = inputs(T, 37), jax.jit(attend, static_argnums=3)
    for offset in (0, 2, 8 - T, 9 - T, 20, 37 - T):  # prefixes are 8, 16, 32, 37
        if not is_causal(scores.sight) and offset < 2:
            continue
        x["valid"] = (jnp.arange(37) >= jnp.array([[0], [2]])) & (jnp.arange(37) < offset + T)
        out = attention(x["q"], x["k"], x["v"], scores, offset=jnp.int32(offset), valid_BS=x["valid"])
        keep = np.asarray(x["valid"])[:, offset : offset + T]
        np.testing.assert_allclose(np.asarray(out)[keep], np.asarray(plain(x, scores, offset))[keep], atol=2e-6)


def test_a_known_offset_gives_what_a_traced_one_gives():
    x = inputs(11, 37)

    @jax.jit
    def difference(x: dict[str, Any], offset: jax.Array) -> jax.Array:
        both = [attend(x["q"], x["k"], x["v"], Scores(0.4, sight=Causal(7)), offset=place) for place in (20, offset)]
        return jnp.abs(both[0] - both[1]).max()

    assert difference(x, jnp.int32(20)) < 1e-6
    assert difference(x, jnp.int32(19)) > 1e-2


def test_slots_beyond_the_live_prefix_or_the_window_are_never_read():
    x = inputs(1, 64)
    dead = jnp.arange(64)[:, None] >= 16
    k, v = (jnp.where(dead, jnp.nan, x[name]) for name in "kv")
    attention = jax.jit(attend, static_argnums=3)
    assert not jnp.isnan(attention(x["q"], k, v, Scores(1.0), offset=jnp.int32(15))).any()
    assert jnp.isnan(attention(x["q"], k, v, Scores(1.0), offset=jnp.int32(16))).any()
    k, v = (jnp.where(dead, x[name], jnp.nan) for name in "kv")
    assert not jnp.isnan(attention(x["q"], k, v, Scores(1.0, sight=Causal(5)), offset=jnp.int32(20))).any()


@pytest.mark.parametrize("window", [None, 30])
def test_keys_of_segments_before_those_of_a_chunk_are_never_read(window: int | None):
    """Nor are values that do not exist made real by weights of zero: what is read and masked spreads NaN."""
    x, attention = inputs(64, 64), jax.jit(attend, static_argnums=3)
    starts = jnp.where(jnp.arange(64) < 33, 0, 33) * jnp.ones((B, 1), jnp.int32)

    def is_nan(dead: int, starts: jax.Array) -> np.ndarray:
        k, v = (x[name].at[:, :, :dead].set(jnp.nan) for name in "kv")
        out = attention(x["q"], k, v, Scores(0.4, sight=Causal(window)), starts_BT=starts)
        return np.asarray(jnp.isnan(out).any(axis=(0, 2, 3)))

    # chunks of 4 from 36 on need 7, 11, 15, ... keys and read 8, 16, 16, 32, ...: those from 60 on 32, not 64
    read = is_nan(28, starts)
    assert not read[36:40].any()
    assert not read[44:48].any()
    assert not read[60:].any()
    assert is_nan(33, starts)[60:].all(), "those of 32 that are masked"
    starts = starts.at[1].set(0)
    assert is_nan(28, starts)[60:].all() == (window is None), "the earliest segment of any row counts"


def temporary_bytes(T: int, function: Any) -> int:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, T, N, C), (1, K, T, C), (1, K, T, C))]
    memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("gradients", [False, True])
def test_temporaries_grow_with_the_length_not_with_its_square(
    gradients: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chunked, "CHUNK", 32)
    monkeypatch.setattr(chunked, "PROGRAMS", 8)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, Scores(1.0, sight=Causal(window)))

    def backward(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return jax.grad(lambda *parts: forward(*parts).sum(), (0, 1, 2))(q, k, v)

    function = backward if gradients else forward
    short, long = (temporary_bytes(T, function) for T in (512, 2048))
    assert long <= 4.5 * short
    assert long < 2048 * 2048 * 4, "less than one head's scores"


def test_bfloat16_weights_are_summed_in_float32():
    x = inputs(19, 19)
    low = {name: x[name].astype(jnp.bfloat16) for name in "qkv"}
    out = jax.jit(attend, static_argnums=3)(low["q"], low["k"], low["v"], Scores(0.4), valid_BS=x["valid"])
    assert out.dtype == jnp.bfloat16
    expected = plain(x | {name: part.astype(jnp.float32) for name, part in low.items()}, Scores(0.4))
    keep = np.asarray(x["valid"])
    np.testing.assert_allclose(np.asarray(out, np.float32)[keep], np.asarray(expected)[keep], atol=0.02)


RING = Ring(make_mesh((1, 1, 2, 4)), "dp", "sp", "tp", "tp")


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("cudnn", {}),
        ("cudnn", {"scores": Scores(1.0, sight=Causal(5))}),
        ("cudnn", {"scores": Scores(1.0, sight=Around())}),
        ("chunked", {"platform": "cpu"}),
        ("chunked", {"platform": "tpu"}),
        ("chunked", {"dtype": jnp.float32}),
        ("chunked", {"channels": 63}),
        ("chunked", {"channels": 256}),
        ("chunked", {"scores": Scores(1.0, softcap=30.0)}),
        ("chunked", {"masked": True}),
        ("chunked", {"whole": False}),
        ("chunked", {"bias": jnp.zeros((1, 1, 1, 16))}),
        ("ring", {"ring": RING}),
        ("ring", {"ring": RING, "platform": "cpu", "dtype": jnp.float32, "masked": True}),
        ("chunked", {"ring": RING, "platform": "cpu", "bias": jnp.zeros((1, 1, 1, 16))}),
        ("chunked", {"ring": RING, "platform": "cpu", "whole": False}),
        ("chunked", {"ring": RING, "platform": "cpu", "length": 18}),
    ],
)
def test_what_computes_attention(expected: str, changes: dict[str, Any]):
    options = {"whole": True, "masked": False, "bias": None, "ring": None, "several": False} | changes
    T, channels, dtype = (options.pop(name, default) for name, default in
                          (("length", 16), ("channels", 64), ("dtype", jnp.bfloat16)))  # fmt: skip
    platform, scores = options.pop("platform", "gpu"), options.pop("scores", Scores(1.0))
    q, k = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, T, 6, channels), (2, 2, T, channels)))
    assert choose(platform, q, k, k, scores, **options) == expected


@pytest.mark.parametrize("scores", [Scores(0.4), Scores(0.4, sight=Causal(5)), Scores(0.4, sight=Around())], ids=str)
def test_fused_attention_is_asked_for_the_same(scores: Scores):
    x = inputs(19, 19) | {"valid": jnp.ones((B, 19), bool)}
    out = jax.jit(attend_fused, static_argnums=(3, 4))(x["q"], x["k"], x["k"], scores, "xla")
    np.testing.assert_allclose(out, plain(x | {"v": x["k"]}, scores), atol=2e-6)
