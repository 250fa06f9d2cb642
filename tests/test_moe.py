"""Mixtures of experts against a plain reference that computes every expert for every token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.mlp import GLU
from easydel.layers.moe import Groups, MoE, TopK
from easydel.ops import gmm, ragged
from easydel.policy import Policy
from easydel.quantize import make_int8, quantize_rows
from easydel.sharding import PartitionAxis, default_rules, make_mesh, shardings
from easydel.tree import bind, flatten, params_of, unflatten

AXES = ("dp", "fsdp", "tp", "sp")
FEATURES = 10
RECORD = MoE(6, GLU(8, "silu", bias=True), TopK(2, renormalize=True), shared=GLU(14, "silu"), shared_gate=True)


def random_layer(record: MoE, policy: Policy | None = None) -> tuple[Any, dict[str, Any]]:
    layer = record.build(FEATURES, policy or Policy())
    rng = np.random.default_rng(7)
    leaves = {
        path: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype)
        for path, leaf in flatten(params_of(layer)).items()
    }
    bind(layer, unflatten(leaves))
    return layer, unflatten(leaves)


def applied(layer: Any, params: dict[str, Any], x: jax.Array) -> jax.Array:
    own = nnx.clone(layer)
    bind(own, params)
    return own(x, Context(jnp.zeros(x.shape[:2], jnp.int32)), None)[0]


def dense(record: MoE, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Every expert for every token, weighted by zero where it was not chosen; softmax routing."""

    def glu(p: Any, x: jax.Array) -> jax.Array:
        def linear(name: str, x: jax.Array) -> jax.Array:
            y = jnp.einsum("...i,...oi->...o", x, p[name]["kernel"])
            return y + p[name].get("bias", 0)

        return linear("down_proj", jax.nn.silu(linear("gate_proj", x)) * linear("up_proj", x))

    scores = jax.nn.softmax(x @ params["gate"]["kernel"].T)
    threshold = jnp.sort(scores, axis=-1)[..., -record.router.k, None]
    weights = jnp.where(scores >= threshold, scores, 0)
    if record.router.renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    y = jnp.einsum("bte,bted->btd", weights, glu(params["experts"], x[..., None, :]))
    if record.shared is not None:
        shared = glu(params["shared_expert"], x)
        y += shared * jax.nn.sigmoid(x @ params["shared_expert_gate"]["kernel"].T)
    return y


def tokens(batch: int, length: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(batch, length, FEATURES)), jnp.float32)


def loss_and_gradients(function: Any, params: Any, x: jax.Array) -> Any:
    return jax.jit(jax.value_and_grad(lambda params, x: jnp.sum(jnp.sin(function(params, x))), argnums=(0, 1)))(
        params, x
    )


def assert_same(ours: Any, reference: Any) -> None:
    def close(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())

    jax.tree.map(close, ours, reference)


@pytest.mark.parametrize(("batch", "length"), [(3, 1), (2, 75)])
def test_outputs_and_gradients_equal_the_dense_reference(batch: int, length: int):
    layer, params = random_layer(RECORD)
    x = tokens(batch, length)
    assert_same(
        loss_and_gradients(lambda p, x: applied(layer, p, x), params, x),
        loss_and_gradients(lambda p, x: dense(RECORD, p, x), params, x),
    )


@cache
def reference_for_sharding() -> Any:
    return loss_and_gradients(lambda p, x: dense(RECORD, p, x), random_layer(RECORD)[1], tokens(4, 6))


@pytest.mark.parametrize(
    ("dims", "axes"),
    [
        ((1, 2, 2, 2), {}),
        ((1, 2, 2, 2), {"expert_axis": "tp"}),
        ((1, 1, 2, 4), {"expert_axis": "tp", "mlp_axis": "sp"}),
        ((1, 2, 4, 1), {"expert_axis": "fsdp"}),
        ((2, 1, 4, 1), {"expert_axis": "tp"}),  # 6 experts are not divisible by 4
    ],
)
def test_sharded_layer_equals_the_dense_reference(dims: tuple[int, ...], axes: dict[str, str]):
    mesh = make_mesh(dims, AXES)
    axis = PartitionAxis(**axes)
    layer, params = random_layer(RECORD, Policy(mesh=mesh, axes=axis))
    x = tokens(4, 6)
    leaves = flatten(params)
    places, _ = shardings({path: leaf.shape for path, leaf in leaves.items()}, mesh, default_rules(axis), strict=False)
    placed = unflatten({path: jax.device_put(leaf, places[path]) for path, leaf in leaves.items()})
    assert_same(loss_and_gradients(lambda p, x: applied(layer, p, x), placed, x), reference_for_sharding())


def test_scanned_and_rematerialised_layers_equal_the_loop():
    layer, params = random_layer(
        RECORD, Policy(mesh=make_mesh((1, 2, 2, 2), AXES), axes=PartitionAxis(expert_axis="tp"))
    )
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    x = tokens(2, 6)

    def scanned(stacked: Any, x: jax.Array) -> jax.Array:
        body = jax.checkpoint(lambda x, params: (applied(layer, params, x), None))
        return jax.lax.scan(body, x, stacked)[0]

    def looped(stacked: Any, x: jax.Array) -> jax.Array:
        for index in range(2):
            x = dense(RECORD, jax.tree.map(lambda leaf, index=index: leaf[index], stacked), x)
        return x

    (ours, ours_grad), (reference, reference_grad) = (loss_and_gradients(f, stacked, x) for f in (scanned, looped))
    np.testing.assert_allclose(ours, reference, rtol=1e-4)
    for path, leaf in flatten(reference_grad[0]).items():
        np.testing.assert_allclose(flatten(ours_grad[0])[path], leaf, atol=1e-3 * np.abs(leaf).max(), err_msg=path)


def test_int8_experts_are_scaled_per_expert_and_row_and_the_router_stays_float():
    layer, params = random_layer(RECORD)
    chosen = make_int8(layer, None)
    assert "experts/down_proj/kernel" in chosen
    assert not any("gate/kernel" in path or "shared_expert_gate" in path for path in chosen)
    leaves = flatten(params)
    rounded = {path: quantize_rows(np.asarray(leaves[path])) for path in chosen}
    stored = unflatten(
        leaves
        | {path: jnp.asarray(values) for path, (values, _) in rounded.items()}
        | {f"{path}_scale": jnp.asarray(scale) for path, (_, scale) in rounded.items()}
    )
    floats = unflatten(leaves | {path: values * scale[..., None] for path, (values, scale) in rounded.items()})
    x = tokens(2, 5)
    assert_same(jax.jit(lambda p, x: applied(layer, p, x))(stored, x), dense(RECORD, floats, x))


def test_only_chosen_experts_are_computed():
    record = MoE(64, GLU(256, "silu"), TopK(1))
    layer, params = random_layer(record)
    x = jnp.ones((1, 1, FEATURES))
    params["gate"]["kernel"] = params["gate"]["kernel"].at[5].set(10.0)
    params["experts"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan).at[5].set(leaf[5]), params["experts"])
    assert jnp.isfinite(jax.jit(lambda p, x: applied(layer, p, x))(params, x)).all()


def test_experts_of_other_groups_are_not_chosen():
    scores = jnp.asarray([[[0.9, 0.0, 0.5, 0.5, 0.3, 0.3]]])
    by_best, by_two = Groups(3, 1).limit(scores), Groups(3, 1, best=2).limit(scores)
    np.testing.assert_array_equal(jnp.isfinite(by_best)[0, 0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(jnp.isfinite(by_two)[0, 0], [0, 0, 1, 1, 0, 0])


def test_a_correction_changes_the_choice_and_not_the_weights():
    router = TopK(1, score="sigmoid", corrected=True, scale=3.0)
    weights, chosen = router.choose(jnp.asarray([[[2.0, 1.0]]]), jnp.asarray([0.0, 5.0]))
    assert chosen.item() == 1
    np.testing.assert_allclose(weights.item(), 3 * jax.nn.sigmoid(1.0), rtol=1e-6)


@dataclass(frozen=True)
class Limited(TopK):
    """No expert takes more than `capacity` tokens of a row: the first come (Fedus et al. 2021, arXiv:2101.03961)."""

    capacity: int = 1

    def choose(self, logits_BTE: jax.Array, correction_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        weights_BTK, chosen_BTK = super().choose(logits_BTE, correction_E)
        same_BTT = chosen_BTK == chosen_BTK[:, :, 0][:, None]
        before_BT1 = jnp.sum(jnp.tril(same_BTT, -1), axis=-1, keepdims=True)
        return jnp.where(before_BT1 < self.capacity, weights_BTK, 0), chosen_BTK


def test_a_router_can_leave_tokens_out():
    plain = MoE(3, GLU(8, "silu"), TopK(1))
    layer, params = random_layer(plain)
    x, limited = tokens(2, 9), random_layer(replace(plain, router=Limited(1, capacity=2)))[0]
    every, some = (np.asarray(applied(own, params, x)) for own in (layer, limited))
    chosen = np.argmax(x @ params["gate"]["kernel"].T, axis=-1)
    taken = np.array([[np.sum(row[:t] == row[t]) < 2 for t in range(9)] for row in chosen])
    assert 0 < taken.sum() < taken.size
    np.testing.assert_allclose(some, every * taken[..., None], atol=1e-6)


@pytest.mark.parametrize(("rows", "sizes"), [(9, [3, 0, 4]), (1, [0, 0, 1]), (200, [150, 0, 50]), (40, [0, 0, 0])])
def test_blocks_and_native_products_agree(rows: int, sizes: list[int]):
    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.normal(size=(rows, width)), jnp.float32) for width in (5, 7))
    kernel, groups = jnp.asarray(rng.normal(size=(3, 7, 5)), jnp.float32), jnp.asarray(sizes)
    used = (np.arange(rows) < sum(sizes))[:, None]
    for contracted, part in ((2, x), (1, dy)):
        ours = ragged.product_by_blocks(part, kernel, groups, contracted=contracted)
        native = ragged.product_native(part, kernel, groups, contracted=contracted)
        np.testing.assert_allclose(ours * used, native * used, atol=1e-5)
    outer = ragged.outer_by_blocks(dy, x, groups)
    np.testing.assert_allclose(outer, ragged.outer_native(dy, x, groups), atol=1e-4)


def test_the_kernel_for_tpus_agrees_with_native_products():
    """Interpreted, since there is no TPU here; with a group that has no rows, and rows of no group."""
    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.normal(size=(200, width)), jnp.bfloat16) for width in (256, 128))
    kernel, sizes = jnp.asarray(rng.normal(size=(3, 128, 256)), jnp.bfloat16), jnp.asarray([150, 0, 40])
    master = kernel.astype(jnp.float32)  # as trained parameters are stored
    assert gmm.takes(x, kernel)
    assert gmm.takes(x, master)
    assert not gmm.takes(x, kernel[:, :96])
    for contracted, part in ((2, x), (1, dy)):
        ours = gmm.product(part, master, sizes, contracted=contracted, interpret=True)
        native = ragged.product_native(part, kernel, sizes, contracted=contracted)
        np.testing.assert_allclose(*(y[:190].astype(jnp.float32) for y in (ours, native)), rtol=0.02, atol=0.1)
    outer = gmm.outer(dy, x, sizes, interpret=True)
    np.testing.assert_allclose(outer, ragged.outer_native(dy, x, sizes), atol=1e-3)


def test_experts_trained_in_bfloat16_lower_to_the_kernel_for_tpus():
    """`ragged_dot` would compute all experts for each row."""

    def total(x: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
        return jnp.sum(ragged.ragged_dot(x, kernel, sizes).astype(jnp.float32) ** 2)

    x, kernel = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16), jax.ShapeDtypeStruct((3, 128, 256), jnp.float32)
    gradient = jax.export.export(jax.jit(jax.grad(total, (0, 1))), platforms=["tpu"])
    text = str(gradient(x, kernel, jax.ShapeDtypeStruct((3,), jnp.int32)).mlir_module())
    assert text.count("tpu_custom_call") == 3, "forward, to rows, to matrices"
