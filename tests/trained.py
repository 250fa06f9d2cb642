"""Tiny models with random parameters for the tests of training: made without a checkpoint, on any mesh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import find_family
from easydel.model import BaseNNXModule
from easydel.policy import Policy
from easydel.quantize import make_int8, quantize_rows
from easydel.sharding import default_rules, make_mesh, shardings
from easydel.tree import Tree, bind, flatten, unflatten
from easydel.weights.names import Names

MESH_AXES = ("dp", "fsdp", "tp", "sp")


def described(case: Case) -> tuple[Any, Names, HFConfig]:
    """The record of `case`, its table of names, and the config as its family reads it."""
    found = find_family(case.model_type, encoder_decoder=case.seq2seq)
    config = found.configured(HFConfig({"model_type": case.model_type} | case.config))
    names = found.names if isinstance(found.names, Names) else found.names(config)
    return found.build(config), names, config


def empty(
    case: Case,
    *,
    mesh: tuple[int, ...] | None = None,
    int8: bool = False,
    layers: int | None = None,
    **policy: Any,
) -> BaseNNXModule:
    """The model of `case` with shapes for parameters, for a mesh of sizes dp, fsdp, tp, sp if given.

    Only the first `layers` are made; none are enough for what is about the head alone, and compile quickly.
    """
    record, names, config = described(case)
    if layers is not None:
        assert isinstance(record, Decoder)
        record = replace(record, blocks=record.blocks[:layers])
    dtypes = {name: jnp.dtype(policy.pop(name)) for name in ("dtype", "param_dtype") if name in policy}
    own = Policy(mesh=None if mesh is None else make_mesh(mesh), **dtypes, **policy)
    model = BaseNNXModule(record, config, own, names)
    if int8:
        make_int8(model, None)
    return model


def random_model(case: Case, *, seed: int = 0, **choices: Any) -> tuple[BaseNNXModule, Tree]:
    """The model with the same random values for the same seed, whatever it is split over, stacked or stored as."""
    model = empty(case, **choices)
    plain = empty(case, layers=choices.get("layers"))
    values = {path: random_values(path, leaf.shape, seed) for path, leaf in flatten(plain.params).items()}
    arranged: dict[str, np.ndarray] = {}
    for path, parts in model.canonical_paths().items():
        if path.endswith("_scale"):
            continue
        value = values[path] if parts == [path] else np.stack([values[part] for part in parts])
        if flatten(model.params)[path].dtype == jnp.int8:
            value, arranged[f"{path}_scale"] = quantize_rows(value)
        arranged[path] = value
    leaves = flatten(model.params)
    placed: dict[str, Any] = dict.fromkeys(leaves)
    if model.policy.mesh is not None:
        shapes = {path: leaf.shape for path, leaf in leaves.items()}
        placed, _ = shardings(shapes, model.policy.mesh, default_rules(model.policy.axes), strict=False)
    arrays = {
        path: jax.device_put(jnp.array(arranged[path], leaf.dtype, copy=True), placed[path] or jax.devices()[0])
        for path, leaf in leaves.items()
    }
    params = unflatten(arrays)
    bind(model, params)
    return model, params


def random_values(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Norms around 1, biases around 0, matrices so that activations keep their size."""
    random = np.random.default_rng([seed, *path.encode()])
    if len(shape) < 2:
        return np.asarray(random.normal(0, 0.1, shape) + path.endswith("scale"), np.float32)
    return random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)


def small(case: Case, **config: Any) -> Case:
    """The same with two layers, and other changes."""
    return replace(case, config={**case.config, "num_hidden_layers": 2, **config})


def same_tree(left: Tree, right: Tree, tolerance: float = 0.0) -> None:
    """Equal paths, and values equal to `tolerance` of the largest of each leaf."""
    ours, theirs = flatten(left), flatten(right)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        expected = np.asarray(theirs[path], np.float32)
        top = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(
            np.asarray(leaf, np.float32), expected, rtol=0, atol=tolerance * top + tolerance * 1e-3, err_msg=path
        )
