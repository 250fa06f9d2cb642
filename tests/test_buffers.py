"""Parameters that are not learned, some of them integers: through loading, scan, a mesh, files, training, adapters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from cases.llama import SIZES
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM, CheckpointError, families
from easydel.config import HFConfig
from easydel.families import find_family, llama
from easydel.layers.linear import buffer
from easydel.layers.mlp import MLP, MLPLayer
from easydel.lora import LoRA, add_adapters, merge_adapters
from easydel.model import BaseNNXModule
from easydel.policy import Policy
from easydel.train import init_state, step
from easydel.tree import bind, flatten, unflatten

CONFIG = SIZES | {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": False}
IDS = np.arange(3, 15).reshape(2, 6)
TABLES = ("mlp/order", "mlp/shift")
FILE = "model.safetensors"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shuffled(MLP):
    """An MLP that reads its features in another order, and shifted."""

    def build(self, features: int, policy: Policy) -> ShuffledLayer:
        return ShuffledLayer(self, features, policy)


class ShuffledLayer(MLPLayer):
    def __init__(self, record: Shuffled, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.order, self.shift = buffer((features,), jnp.int32), buffer((features,), jnp.float32)

    def __call__(self, x: jax.Array, *rest: Any) -> Any:
        return super().__call__(jnp.take(x, self.order[...], axis=-1) + self.shift[...].astype(x.dtype), *rest)


def shuffled(c: HFConfig) -> Any:
    layers = range(c.num_hidden_layers)
    ffn = Shuffled(c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
    return llama.pre_norm(c, [llama.attention(c, biased=c.attention_bias) for _ in layers], [ffn for _ in layers])


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(find_family("llama"), build=shuffled, names=llama.NAMES.extended({"mlp.order": "mlp.tid2eid"}))
    monkeypatch.setitem(families._FAMILIES, ("llama", False), own)


def random_value(path: str, leaf: Any, random: np.random.Generator) -> np.ndarray:
    if path.endswith("order"):
        return random.permutation(leaf.shape[0]).astype(np.int32)
    values = random.normal(0, 0.2, leaf.shape) + (path.endswith("/scale"))
    return values.astype(np.float32)


@pytest.fixture
def made() -> BaseNNXModule:
    found = find_family("llama")
    config = found.configured(HFConfig(CONFIG))
    record, names = found.record(config)
    model, random = BaseNNXModule(record, config, Policy(), names), np.random.default_rng(0)
    leaves = {path: random_value(path, leaf, random) for path, leaf in flatten(model.params).items()}
    bind(model, unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()}))
    return model


@pytest.fixture
def directory(made: BaseNNXModule, tmp_path: Path) -> Path:
    made.export(tmp_path / "files")
    return tmp_path / "files"


def load(directory: Path, **choices: Any) -> BaseNNXModule:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory, **choices)[0]


def change(directory: Path, name: str, dtype: Any, *, layers: int = 2) -> Arrays:
    """The files with the tables called `name` as `dtype`; what they hold then."""
    tensors = load_file(directory / FILE)
    names = [f"model.layers.{layer}.mlp.{name}" for layer in range(layers)]
    tensors |= {name: tensors[name].astype(dtype) for name in names}
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    return tensors


def tables(model: BaseNNXModule) -> Arrays:
    return {path: np.asarray(leaf) for path, leaf in flatten(model.params).items() if path.endswith(TABLES)}


def same_arrays(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_a_model_knows_its_buffers_and_does_not_count_them(made: BaseNNXModule):
    expected = {f"model/layers/{layer}/{table}" for layer in range(2) for table in TABLES}
    assert made.buffers == expected
    sizes = {path: leaf.size for path, leaf in flatten(made.params).items()}
    assert made.num_params() == sum(sizes.values()) - sum(sizes[path] for path in expected)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("mesh", [None, (1, 2, 2, 1)], ids=["one device", "mesh"])
def test_loaded_tables_are_those_of_the_file(made: BaseNNXModule, directory: Path, scan_layers: bool, mesh: Any):
    choices = {} if mesh is None else {"sharding_axis_dims": mesh, "auto_shard_params": True}
    model = load(directory, scan_layers=scan_layers, **choices)
    np.testing.assert_allclose(model(IDS).logits, made(IDS).logits, atol=2e-5)
    dtypes = {path.rsplit("/", 1)[1]: leaf.dtype for path, leaf in tables(model).items()}
    assert dtypes == {"order": np.int32, "shift": np.float32}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_integers_of_any_size_are_read_saved_and_exported(made: BaseNNXModule, directory: Path, dtype: type):
    tensors = change(directory, "tid2eid", dtype)
    model = load(directory, load_in_8bit=True)
    assert model(IDS).logits.shape == (*IDS.shape, CONFIG["vocab_size"])
    stored = np.dtype(np.int32 if dtype is np.int64 else dtype)
    assert tables(model)["model/layers/0/mlp/order"].dtype == stored
    model.save_pretrained(directory.parent / "saved")
    again = load(directory.parent / "saved", from_torch=False)
    same_arrays(tables(again), tables(model))
    assert sorted(
        path for path, leaf in flatten(again.params).items() if leaf.dtype == jnp.int8 and "order" in path
    ) == (sorted(path for path in model.buffers if "order" in path) if dtype is np.int8 else [])
    again.export(directory.parent / "exported", dtype=jnp.bfloat16)
    exported = load_file(directory.parent / "exported" / FILE)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.tid2eid"
        np.testing.assert_array_equal(exported[name], tensors[name].astype(stored))
        assert exported[name].dtype == stored
    assert exported["lm_head.weight"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_floats_keep_the_dtype_of_their_file(directory: Path, dtype: Any, scan_layers: bool):
    expected = change(directory, "shift", dtype)
    model = load(directory, param_dtype="float16", scan_layers=scan_layers)
    assert {leaf.dtype for path, leaf in tables(model).items() if "shift" in path} == {np.dtype(dtype)}
    for name, chosen in (("own", None), ("chosen", jnp.bfloat16)):
        model.export(directory.parent / name, dtype=chosen)
        exported = load_file(directory.parent / name / FILE)
        for layer in range(2):
            tensor = f"model.layers.{layer}.mlp.shift"
            same_arrays({tensor: exported[tensor]}, {tensor: expected[tensor]})


@pytest.mark.parametrize(
    ("name", "dtype", "told"), [("tid2eid", np.float32, "integers"), ("shift", np.int32, "floating-point numbers")]
)
def test_a_table_of_another_kind_is_refused(directory: Path, name: str, dtype: type, told: str):
    change(directory, name, dtype, layers=1)
    with pytest.raises(CheckpointError, match=rf"mlp\.{name} is {np.dtype(dtype)}, expected {told}"):
        load(directory)


def test_an_integer_that_is_too_large_is_refused(directory: Path):
    tensors = change(directory, "tid2eid", np.int64)
    tensors["model.layers.1.mlp.tid2eid"][3] = 2**31
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model/layers/1/mlp/order.*do not fit into int32"):
        load(directory)


@pytest.mark.parametrize("choices", [{}, {"scan_layers": True, "remat": "everything"}], ids=["loop", "scan and remat"])
@pytest.mark.parametrize("trainable", [None, lambda path: True], ids=["default", "all asked for"])
def test_training_leaves_buffers_as_they_are(directory: Path, choices: dict[str, Any], trainable: Any):
    model = load(directory, **choices)
    before, optimizer = tables(model), optax.adamw(0.1, weight_decay=0.5)
    state = init_state(model, model.params, optimizer, trainable=trainable)
    assert flatten(state.frozen).keys() == model.buffers
    state, metrics = step(model, optimizer, accumulate=2)(state, {"input_ids": IDS})
    assert np.isfinite(metrics.loss)
    after = {path: np.asarray(leaf) for path, leaf in flatten(state.params).items() if path.endswith(TABLES)}
    same_arrays(after, before)


def test_no_gradient_reaches_a_buffer(made: BaseNNXModule):
    leaves = flatten(made.params)
    floats = {path: leaf for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def loss(floats: dict[str, Any]) -> jax.Array:
        return jnp.sum(made.apply(unflatten(leaves | floats), IDS).logits ** 2)

    gradients, fixed = jax.grad(loss)(floats), [path for path in floats if path.endswith(TABLES)]
    assert fixed
    assert not any(np.any(gradients[path]) for path in fixed)
    assert all(np.any(gradients[path]) for path in floats if not path.endswith(TABLES))


def test_adapters_are_trained_and_merged_beside_buffers(directory: Path):
    model = load(directory)
    before, optimizer = tables(model), optax.sgd(0.1)
    params = add_adapters(model, LoRA(r=2, target_modules="all-linear"))
    state, _ = step(model, optimizer)(init_state(model, params, optimizer), {"input_ids": IDS})
    bind(model, state.params)
    merge_adapters(model)
    same_arrays(tables(model), before)
