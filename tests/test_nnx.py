"""Models as NNX knows modules: its idioms for splitting, optimizing and showing them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_inputs.valid import write_safetensors
from flax import nnx
from jax.sharding import PartitionSpec

from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.tree import Tree, flatten

IDS = np.arange(32).reshape(8, 4)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseNNXModule, Tree]:
    folder = tmp_path_factory.mktemp("model")
    write_safetensors(folder)
    return AutoEasyDeLModelForCausalLM.from_pretrained(
        folder, auto_shard_params=True, sharding_axis_dims=(1, 8, 1, 1), precision="highest"
    )


def specs(state: nnx.State) -> dict[str, PartitionSpec]:
    found = nnx.to_flat_state(nnx.get_partition_spec(state))
    return {"/".join(map(str, path)): variable.get_value() for path, variable in found}


def test_variables_say_how_they_are_split(split: tuple[BaseNNXModule, Tree]):
    model, params = split
    expected = {path: leaf.sharding.spec for path, leaf in flatten(params).items()}
    assert specs(nnx.state(model)) == expected
    assert sum(spec != PartitionSpec() for spec in expected.values()) > 10

    mesh = model.policy.mesh
    assert mesh is not None

    @nnx.jit
    def constrained(model: BaseNNXModule) -> nnx.State:
        state = nnx.state(model)
        return jax.lax.with_sharding_constraint(state, nnx.get_named_sharding(state, mesh))

    for path, leaf in nnx.to_flat_state(constrained(model)):
        own = flatten(params)["/".join(map(str, path))]
        assert leaf.get_value().sharding.is_equivalent_to(own.sharding, own.ndim), path


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-3), optax.sgd(1e-3, momentum=0.9), optax.adafactor(1e-3)])
def test_optimizers_of_nnx_work_and_their_moments_are_split_likewise(
    split: tuple[BaseNNXModule, Tree], optimizer: optax.GradientTransformation
):
    state = nnx.Optimizer(split[0], optimizer, wrt=nnx.Param).opt_state
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (40, 24)]
    assert moments
    assert all(not leaf.sharding.is_fully_replicated for leaf in moments)


def test_gradients_of_apply_are_split_as_the_parameters(split: tuple[BaseNNXModule, Tree]):
    model, params = split
    gradients = jax.jit(jax.grad(lambda params: model.apply(params, IDS).logits.astype(jnp.float32).var()))(params)
    for path, leaf in flatten(params).items():
        assert flatten(gradients)[path].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path


def test_a_model_is_shown_in_a_screenful(split: tuple[BaseNNXModule, Tree]):
    lines = repr(split[0]).splitlines()
    assert lines[0] == "BaseNNXModule of llama: 13,608 parameters"
    assert any("model/layers/*/self_attn/q_proj/kernel" in line and line.endswith("x 2") for line in lines)
    assert len(lines) < 25
    assert repr(split[0].config).startswith("HFConfig({'model_type': 'llama'")


def test_tabulate_is_refused_before_it_changes_anything(split: tuple[BaseNNXModule, Tree]):
    model, _ = split
    with pytest.raises(ArgumentError, match=r"nnx.tabulate cannot show this model; print\(model.describe\(\)\)"):
        nnx.tabulate(model, IDS)
    assert model(IDS).logits.shape == (8, 4, 97)
