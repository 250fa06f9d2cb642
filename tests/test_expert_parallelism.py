"""Experts that stay on their devices: equal to one device, nobody left out, and few bytes sent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from foretold import as_large_as, built, sent_by
from test_moe import applied, assert_same, dense, loss_and_gradients, random_layer, tokens

from easydel.aot.tracing import trace_step, trace_training
from easydel.cli.plan import experts_over
from easydel.layers import experts
from easydel.layers.experts import Experts
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK
from easydel.ops import exchange, pairs
from easydel.policy import Policy
from easydel.sharding import AXES, PartitionAxis, default_rules, make_mesh, shardings
from easydel.tree import flatten, params_of, unflatten

SIZES = {
    "model_type": "qwen3_moe", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "moe_intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8, "num_experts": 32,
    "num_experts_per_tok": 2, "norm_topk_prob": True, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}  # fmt: skip
KERNELS = 32 * 64 * 48  # numbers in one kernel of all experts


def placed(params: Any, policy: Policy) -> Any:
    leaves, mesh = flatten(params), policy.mesh
    assert mesh is not None
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    places, _ = shardings(shapes, mesh, default_rules(policy.axes), strict=False)
    return unflatten({path: jax.device_put(leaf, places[path]) for path, leaf in leaves.items()})


def ways(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What travels, of all layers that are computed from now on."""
    found, choose = set(), Experts._travels

    def noted(self: Experts, *given: Any) -> str:
        found.add(way := choose(self, *given))
        return way

    monkeypatch.setattr(Experts, "_travels", noted)
    return found


def preferring(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(Experts, "_travels", lambda self, *given: way)


EIGHT = MoE(8, GLU(8, "silu", bias=True), TopK(2, renormalize=True))


def same_as_dense(record: MoE, dims: tuple[int, ...], x: jax.Array, axes: PartitionAxis, **changed: Any) -> None:
    policy = Policy(mesh=make_mesh(dims, AXES), axes=axes)
    layer, params = random_layer(record, policy)
    for path, value in changed.items():
        params["gate"][path] = params["gate"][path] + value
    ours = loss_and_gradients(lambda p, x: applied(layer, p, x), placed(params, policy), x)
    assert_same(ours, loss_and_gradients(lambda p, x: dense(record, p, x), params, x))


@pytest.mark.parametrize("way", ["pairs", "tokens", "kernels"])
@pytest.mark.parametrize("dims", [(1, 8, 1, 1), (1, 4, 2, 1), (2, 2, 1, 2)], ids=str)
def test_outputs_and_gradients_equal_one_device_whatever_travels(
    way: str, dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    preferring(monkeypatch, way)
    monkeypatch.setattr(experts, "FEW", 16)
    same_as_dense(EIGHT, dims, tokens(8, 6), PartitionAxis())


@pytest.mark.parametrize("way", ["pairs", "tokens"])
def test_experts_along_an_axis_where_tokens_are_whole_take_part(way: str, monkeypatch: pytest.MonkeyPatch):
    preferring(monkeypatch, way)
    monkeypatch.setattr(experts, "FEW", 16)
    same_as_dense(EIGHT, (1, 2, 2, 2), tokens(8, 6), PartitionAxis(expert_axis=("tp", "fsdp")))


def crowded() -> tuple[jax.Array, jax.Array]:
    """Tokens, and what makes a router choose experts 2 and 3 for each of them."""
    return tokens(8, 48).at[..., 0].set(1.0), jnp.zeros((8, 10)).at[2:4, 0].set(20.0)


@pytest.mark.parametrize("way", ["pairs", "tokens"])
def test_no_token_is_dropped_where_all_choose_experts_of_one_device(way: str, monkeypatch: pytest.MonkeyPatch):
    preferring(monkeypatch, way)
    monkeypatch.setattr(experts, "FEW", 16)
    x, kernel = crowded()
    count = 2 * x.shape[0] * x.shape[1]
    per_round = exchange.places_for(count / 4 / 4) if way == "pairs" else exchange.places_for(count / 4)
    assert per_round < (count / 4 if way == "pairs" else count) / 2, "there are at least three rounds"
    same_as_dense(EIGHT, (1, 4, 2, 1), x, PartitionAxis(), kernel=kernel)


def test_adapters_of_any_rank_leave_experts_split_over_tp():
    policy = Policy(mesh=make_mesh((1, 1, 8, 1), AXES))
    layer = Experts(8, GLU(16, "silu"), 10, policy)
    params = params_of(layer)
    for name, (outputs, inputs) in {"gate_proj": (16, 10), "down_proj": (10, 16)}.items():
        low, high = (jax.ShapeDtypeStruct((8, *dims), jnp.float32) for dims in ((3, inputs), (outputs, 3)))
        params[name] |= {"lora_A": low, "lora_B": high}
    assert layer._split(policy.mesh, params, jax.ShapeDtypeStruct((2, 4, 10), jnp.float32)).mlp == "tp"


def test_the_places_of_one_round_are_enough_for_an_even_load():
    rng = np.random.default_rng(0)
    for mean in (1, 8, 100, 4096):
        loads = np.bincount(rng.integers(0, 64, 64 * mean), minlength=64)
        assert loads.max() <= exchange.places_for(mean) <= 1.25 * mean + 3 * mean**0.5 + 8


def test_training_and_decoding_move_no_kernel_of_experts(monkeypatch: pytest.MonkeyPatch):
    """The first sends each token's pairs, the second the tokens to all."""
    found, mesh = ways(monkeypatch), make_mesh((1, 8, 1, 1))
    model, params = built(SIZES, mesh, scan_layers=True, remat="everything")
    trained = sent_by(model, trace_training(model, params, optax.sgd(1e-3), 16, 64))
    assert found == {"pairs"}
    assert as_large_as(KERNELS, trained) == []
    row, n = 4 * 64, 16 * 64 // 8  # CPUs send bfloat16 as float32
    share = 2 * row * 8 * exchange.places_for(n * 2 / 8) * 7 / 8
    passes = [one for one in trained if one.kind == "all-to-all"]
    assert sum(one.total for one in passes) < 2 * (5 / 2) * 1.2 * share, "of 2 layers: there and back, and 3 in return"
    found.clear()
    decoded = sent_by(model, trace_step(model, params, 8, 64))
    assert found == {"tokens"}
    assert as_large_as(KERNELS // 8, decoded) == []


@pytest.mark.parametrize("way", [pairs.by_sorting, pairs.by_counting])
def test_pairs_are_ordered_by_number_and_by_their_own_order(way: Any):
    numbers = np.random.default_rng(1).integers(0, 5, 700)
    order, position, sizes = way(jnp.asarray(numbers), 4)
    np.testing.assert_array_equal(order, np.argsort(numbers, stable=True))
    np.testing.assert_array_equal(np.asarray(order)[position], np.arange(700))
    np.testing.assert_array_equal(sizes[:4], np.bincount(numbers)[:4])


def test_experts_that_an_axis_does_not_divide_are_split_otherwise():
    """The plan says what becomes of them; shared ones (here 2) have a split of their own."""
    mesh = make_mesh((1, 4, 1, 2), AXES)
    shapes = {
        f"mlp/{name}experts/down_proj/kernel{end}": (count, 64, *([] if end else [48]))
        for name, count in (("", 8), ("shared/", 4), ("few/", 6))
        for end in ("", "_scale")
    }
    found, losses = shardings(shapes, mesh, default_rules(PartitionAxis()), strict=False)
    specs = {path.removeprefix("mlp/"): tuple(sharding.spec) for path, sharding in found.items()}
    assert specs["experts/down_proj/kernel"] == (("fsdp", "sp"), None, "tp")
    assert specs["shared/experts/down_proj/kernel"] == ("fsdp", "sp", "tp")
    assert specs["few/experts/down_proj/kernel"] == (None, ("fsdp", "sp"), "tp")
    assert all(specs[f"{path}_scale"] == spec[:2] for path, spec in specs.items() if path.endswith("kernel"))
    assert losses == {}
    assert experts_over({"mlp/experts/down_proj/kernel": found["mlp/experts/down_proj/kernel"]}, mesh.shape) == [
        "fsdp",
        "sp",
    ]
