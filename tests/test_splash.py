"""The TPU kernel: the choice of it, its lowering for TPUs, and its results, interpreted on CPUs."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foretold import needs_libtpu
from jax.sharding import NamedSharding, PartitionSpec
from plain import plain

import easydel.ops.attend as attends
import easydel.ops.splash as splash
from easydel.aot.topology import topology_mesh
from easydel.ops.attend import attend, choose
from easydel.ops.ring import Ring
from easydel.ops.scores import Scores
from easydel.ops.sight import Around, Causal
from easydel.ops.splash import attend_splash, block_size
from easydel.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("flags_kept")

# B batch, T tokens, N heads, K kv heads, C head channels, V value channels
B, T, N, K, C, V = 2, 256, 4, 2, 64, 128
HIGHEST = jax.lax.Precision.HIGHEST


def ring_of(*dims: int, kv_heads: str | None = "tp") -> Ring:
    return Ring(make_mesh(dims), ("dp", "fsdp"), "sp", "tp", kv_heads)


def shapes(length: int = T, channels: int = C, values: int = V, dtype: Any = jnp.bfloat16) -> list[Any]:
    sizes = ((B, length, N, channels), (B, K, length, channels), (B, K, length, values))
    return [jax.ShapeDtypeStruct(size, dtype) for size in sizes]


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("splash", {}),
        ("splash", {"scores": Scores(1.0, softcap=30.0, sight=Causal(100))}),
        ("splash", {"scores": Scores(1.0, sight=Around())}),
        ("splash", {"masked": True}),
        ("splash", {"length": 4224}),
        ("splash", {"channels": 192, "values": 128}),
        ("splash", {"dtype": jnp.float32}),
        ("splash", {"scores": Scores(1.0, precision=HIGHEST)}),
        ("splash", {"several": True, "ring": ring_of(2, 2, 2, 1)}),
        ("ring", {"several": True, "ring": ring_of(1, 1, 2, 4)}),
        ("splash ring", {"several": True, "ring": ring_of(1, 1, 2, 4), "length": 2048}),
        ("ring", {"several": True, "ring": ring_of(1, 1, 2, 4), "length": 2048, "platform": "cpu"}),
        ("chunked", {"whole": False}),
        ("chunked", {"bias": jnp.zeros((1, 1, 1, T))}),
        ("chunked", {"length": 128}),
        ("chunked", {"length": 320}),
        ("splash", {"channels": 80, "values": 96}),
        ("chunked", {"channels": 48}),
        ("chunked", {"channels": 576}),
        ("chunked", {"dtype": jnp.float16}),
        ("chunked", {"dtype": jnp.float32, "scores": Scores(1.0, precision=HIGHEST)}),
        ("chunked", {"several": True}),
        ("chunked", {"several": True, "ring": ring_of(1, 4, 2, 1, kv_heads=None)}),
        ("chunked", {"platform": "cpu"}),
        ("cudnn", {"platform": "gpu", "values": C}),
    ],
)
def test_what_computes_attention_on_a_tpu(expected: str, changes: dict[str, Any]):
    options = {"whole": True, "masked": False, "bias": None, "ring": None, "several": False} | changes
    sizes = {name: options.pop(name) for name in ("length", "channels", "values", "dtype") if name in options}
    platform, scores = options.pop("platform", "tpu"), options.pop("scores", Scores(1.0))
    assert choose(platform, *shapes(**sizes), scores, **options) == expected


def inputs(channels: int = C, values: int = V) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sizes = {"q": (B, T, N, channels), "k": (B, K, T, channels), "v": (B, K, T, values), "sinks": (N,)}
    made = {name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in sizes.items()}
    lengths = jnp.array([[50], [140]])
    rows = {"valid": jnp.arange(T) >= jnp.array([[0], [131]]), "starts": jnp.arange(T) // lengths * lengths}
    return made | rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    """So that some are skipped."""
    monkeypatch.setattr(splash, "BLOCKS", (128,))


CASES: dict[str, tuple[Scores, dict[str, Any]]] = {
    "causal": (Scores(0.15), {}),
    "both ways": (Scores(0.15, sight=Around()), {}),
    "window": (Scores(0.15, sight=Causal(70)), {}),
    "a window both ways": (Scores(0.15, sight=Around(69)), {}),
    "softcap": (Scores(0.6, softcap=1.7), {}),
    "padding": (Scores(0.15), {"valid": True}),
    "padding both ways": (Scores(0.15, sight=Around()), {"valid": True}),
    "sinks": (Scores(0.15), {"sinks": True}),
    "segments": (Scores(0.15), {"starts": True}),
    "segments and padding both ways": (Scores(0.15, sight=Around()), {"starts": True, "valid": True}),
    "channels that are no multiple of 64": (Scores(0.15), {"sizes": (80, 96)}),
    "softcap, window, padding and sinks": (Scores(0.6, softcap=1.7, sight=Causal(70)), {"valid": True, "sinks": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_plain_attention(name: str):
    check(*CASES[name])


@pytest.mark.parametrize(
    ("dims", "name"), [((1, 4, 2, 1), "softcap, window, padding and sinks"), ((2, 1, 1, 1), "segments")], ids=str
)
def test_each_device_computes_its_own_batch_and_heads(dims: tuple[int, ...], name: str):
    check(*CASES[name], ring=ring_of(*dims))


def check(scores: Scores, options: dict[str, Any], **placed: Any) -> None:
    x, sinks = inputs(*options.get("sizes", ())), options.get("sinks", False)
    padded = x.pop("valid")
    valid = padded if options.get("valid") else jnp.ones((B, T), bool)
    starts = x.pop("starts") if options.get("starts") else x.pop("starts") * 0
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, N, x["v"].shape[3])), jnp.float32)
    weights = weights * valid[:, :, None, None]  # rows of padding see nothing, and mean nothing

    def ours(x: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        given = {"valid_BS": valid if options.get("valid") else None, "sinks_N": x["sinks"] if sinks else None}
        given["starts_BT"] = starts if options.get("starts") else None
        out = attend_splash(x["q"], x["k"], x["v"], scores, interpret=True, **given, **placed)
        return jnp.sum(out * weights), out

    def theirs(x: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        out = plain(x | {"valid": valid, "starts": starts}, scores, sinks=sinks)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(x)
    (_, expected), expected_gradients = jax.jit(jax.value_and_grad(theirs, has_aux=True))(x)
    keep = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(out)[keep], np.asarray(expected)[keep], atol=2e-6)
    assert np.isfinite(out).all()
    for part, gradient in gradients.items():
        top = np.abs(expected_gradients[part]).max()
        np.testing.assert_allclose(gradient, expected_gradients[part], atol=2e-6 * max(1.0, top), err_msg=part)


def test_over_several_devices_attention_is_the_kernel_on_each(monkeypatch: pytest.MonkeyPatch):
    """All that `attend` is given arrives, though there is no mesh of TPUs to ask `choose` about."""
    monkeypatch.setattr(attends, "choose", lambda *arrays, **options: "splash")
    monkeypatch.setattr(attends, "attend_splash", partial(attend_splash, interpret=True))
    x, ring, scores = inputs(), ring_of(1, 2, 2, 1), Scores(0.15, sight=Causal(70))
    masks: dict[str, Any] = {"valid_BS": x["valid"], "sinks_N": x["sinks"], "starts_BT": x["starts"]}
    out = jax.jit(partial(attend, scores=scores, mesh=ring.mesh, ring=ring, **masks))(x["q"], x["k"], x["v"])
    keep = np.asarray(x["valid"])
    expected = plain(x, scores, sinks=True)
    np.testing.assert_allclose(np.asarray(out)[keep], np.asarray(expected)[keep], atol=2e-6)


@pytest.mark.parametrize(
    "sizes",
    [{}, {"dtype": jnp.float32, "channels": 256, "values": 256}, {"channels": 192, "length": 384}],
    ids=str,
)
def test_what_it_takes_lowers_for_tpus_forward_and_backward(sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splash, "BLOCKS", (512, 256, 128))
    q, k, v = shapes(**sizes)
    scores = Scores(0.15, softcap=30.0, sight=Causal(200))
    valid, sinks = jax.ShapeDtypeStruct(q.shape[:2], jnp.bool_), jax.ShapeDtypeStruct((N,), jnp.float32)

    def total(q: Any, k: Any, v: Any, sinks: Any, valid: Any) -> jax.Array:
        return attend_splash(q, k, v, scores, valid_BS=valid, sinks_N=sinks).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total, (0, 1, 2, 3)))
    text = str(jax.export.export(gradient, platforms=["tpu"])(q, k, v, sinks, valid).mlir_module())
    assert text.count("tpu_custom_call") == 3, "forward, to queries, to keys and values"


@needs_libtpu
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize(("topology", "channels"), [("v5e:2x2", 128), ("v6e:2x2", 256)])
def test_the_largest_blocks_of_a_chip_fit_into_its_memory(
    topology: str, channels: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(splash, "BLOCKS", (512, 256, 128))
    mesh = topology_mesh(topology, (1, 4, 1, 1))
    chip = mesh.devices.flat[0].device_kind
    assert block_size(2048, channels, jnp.bfloat16, chip) == 1024
    assert block_size(2048, channels + 1, jnp.bfloat16, chip) == block_size(2048, 128, jnp.float32, chip) == 512
    ring, scores = Ring(mesh, "fsdp", "sp", "tp", "tp"), Scores(0.15, softcap=30.0)

    def total(q: Any, k: Any, v: Any, sinks: Any, valid: Any) -> jax.Array:
        out = attend_splash(q, k, v, scores, valid_BS=valid, sinks_N=sinks, ring=ring, chip=chip)
        return out.astype(jnp.float32).sum()

    def of(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        spec = PartitionSpec("fsdp" if len(shape) > 1 else None)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    keys = of(4, 1, 2048, channels)
    arguments = (of(4, 2048, 2, channels), keys, keys, of(2, dtype=jnp.float32), of(4, 2048, dtype=jnp.bool_))
    jax.jit(jax.grad(total, (0, 1, 2, 3))).lower(*arguments).compile()


@needs_libtpu
def test_in_a_ring_of_tpus_the_kernel_computes_pieces():
    mesh = topology_mesh("v5e:2x2", (1, 1, 1, 4))
    ring, scores = Ring(mesh, "fsdp", "sp", "tp", "tp"), Scores(0.15)

    def total(q: Any, k: Any, v: Any) -> jax.Array:
        return attend(q, k, v, scores, mesh=mesh, ring=ring).astype(jnp.float32).sum()

    def of(sequence: int, *shape: int) -> Any:
        spec = PartitionSpec(*[None] * sequence, "sp")
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    keys = of(2, 1, 1, 4096, 128)
    text: Any = jax.jit(jax.grad(total, (0, 1, 2))).lower(of(1, 1, 4096, 2, 128), keys, keys).compile().as_text()
    kernels = text.count('custom_call_target="tpu_custom_call"')
    assert kernels == 2 * 3, "of pieces seen in part and wholly: forward, to queries, to keys and values"


def test_where_there_is_a_tpu_the_device_of_the_model_decides(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    x = inputs() | {"valid": jnp.ones((B, T), bool), "starts": jnp.zeros((B, T))}

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(attend(q, k, v, Scores(0.15)) ** 2)

    def expected(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(plain(x | {"q": q, "k": k, "v": v}, Scores(0.15)) ** 2)

    gradient, parts = jax.jit(jax.grad(total, (0, 1, 2))), (x["q"], x["k"], x["v"])
    for ours, theirs in zip(gradient(*parts), jax.grad(expected, (0, 1, 2))(*parts), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())
    exported = jax.export.export(gradient, platforms=["tpu"])(*parts)
    assert "tpu_custom_call" in str(exported.mlir_module())
