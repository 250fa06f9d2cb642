"""First values for the parameters of a model that is to be trained from nothing."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from easydel.errors import UnsupportedModelError, listed
from easydel.module import LanguageModel
from easydel.sharding.placement import Placement
from easydel.tree import Tree, annotate, bind, flatten, module_at, unflatten

STD = 0.02  # transformers' initializer_range, in almost every config
Start = Callable[[jax.Array, tuple[int, ...], Any, float], jax.Array]


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, std: float) -> jax.Array:
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


@lru_cache
def _constant(value: float) -> Start:
    return lambda key, shape, dtype, std: jnp.full(shape, value, dtype)


def _logs(key: jax.Array, shape: tuple[int, ...], dtype: Any, std: float) -> jax.Array:
    """Mamba's decay rates, 1 to n (Gu and Dao 2023, arXiv:2312.00752)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape).astype(dtype)


# The first pattern that matches a parameter's own name counts.
STARTS: tuple[tuple[str, Start], ...] = (
    (r"kernel|embedding|lambda_.*|(x|dt)_proj_weight|.*_gate_weight", _normal),
    (r"dt_bias|D|.*_gain|layer_scalar", _constant(1)),
    (r"bias|.*_bias|sinks", _constant(0)),
    (r"A_log", _logs),
)


def initialise(model: LanguageModel, placement: Placement, *, seed: int, std: float) -> Tree:
    """Gives a model first values: matrices normal with deviation `std`, norms 1, biases 0. Returns its parameters.

    They depend on `seed` and on the parameter's path, not on the mesh. Raises UnsupportedModelError for a model with
    parameters that need other ones.
    """
    leaves = flatten(model.params)
    starts = {path: _start(model, path) for path in leaves}
    if unknown := sorted({path.rsplit("/", 1)[1] for path, start in starts.items() if start is None}):
        problem = f"no first values are known for these parameters:{listed(unknown)}"
        raise UnsupportedModelError(problem, hint="load a checkpoint, of transformers' from_config for instance")
    splits, key, arrays = placement.shardings_of(leaves), jax.random.key(seed), {}
    layers = model.canonical_paths()
    for path, leaf in leaves.items():
        make = starts[path]
        assert make is not None
        keys = [jax.random.fold_in(key, zlib.crc32(part.encode())) for part in layers[path]]
        stacked = layers[path] != [path]
        shape = leaf.shape[1:] if stacked else leaf.shape
        array = _maker(make, shape, leaf.dtype, stacked, std, splits[path])(jnp.stack(keys))
        arrays[path] = placement.placed(path, array)
    params = unflatten(arrays)
    bind(model, params)
    annotate(model, params)
    return params


@lru_cache(maxsize=256)
def _maker(make: Start, shape: tuple[int, ...], dtype: Any, stacked: bool, std: float, split: Any) -> Any:
    """Returns a compiled function of keys, one for each layer: parameters of equal shapes share it."""

    def values(keys: jax.Array) -> jax.Array:
        rows = [make(key, shape, dtype, std) for key in keys]
        return jnp.stack(rows) if stacked else rows[0]

    return jax.jit(values, out_shardings=split)


def _start(model: LanguageModel, path: str) -> Start | None:
    *parents, name = path.split("/")
    owner = module_at(model, parents)
    if name == "scale":
        return _constant(1 - getattr(getattr(owner, "record", None), "offset", 0))
    if not jnp.issubdtype(getattr(owner, name).get_raw_value().dtype, jnp.floating):
        return None
    return next((start for pattern, start in STARTS if re.fullmatch(pattern, name)), None)
