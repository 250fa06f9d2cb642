"""The state of a training between two steps, and its layout on the mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from easydel.errors import ArgumentError, listed
from easydel.lora.places import trained_with
from easydel.module import LanguageModel
from easydel.stored import forms_of
from easydel.tree import ADAPTERS, Tree, flatten, unflatten

T = TypeVar("T")


class Optimizer(Protocol):
    """An optimizer of `optax`: an `init` and an `update`."""

    @property
    def init(self) -> Callable[..., Any]: ...
    @property
    def update(self) -> Callable[..., Any]: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A training between two steps: trained and frozen parameters (nested dicts), optimizer state, and step count."""

    trained: Tree
    frozen: Tree
    moments: Any
    count: jax.Array

    @property
    def params(self) -> Tree:
        """All parameters, in the form that `model.apply`, `save_pretrained` and `export` take."""
        return unflatten(flatten(self.trained) | flatten(self.frozen))


def init_state(
    model: LanguageModel,
    params: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    trainable: Callable[[str], bool] | None = None,
) -> State:
    """Returns the state before the first step; the optimizer's arrays are split like the parameters from the start.

    The state takes over the arrays of `params`. The first step consumes the trained ones, which the model then no
    longer has either; `state.params` has the new ones. `trainable` selects the trained parameters by path; default: the
    adapters if there are any, and what their record names beside them; else all parameters. The model's buffers are
    never trained. Raises ArgumentError if nothing is selected, or parameters stored by codes are.
    """
    leaves = {
        path: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for path, leaf in flatten(params).items()
    }
    check_alive(leaves, "the parameters", "use state.params of the newest state, or load the model again")
    chosen = trainable or _default(model, leaves)
    buffers = model.buffers  # weight decay would change them, too
    trained = {path: leaf for path, leaf in leaves.items() if chosen(path) and path not in buffers}
    codes = forms_of(model)
    if (coded := [path for path in trained if path in codes]) or not trained:
        names = " and ".join(sorted({codes[path].code.name for path in coded}))
        raise ArgumentError(
            f"{names} cannot be trained:{listed(coded, 4)}" if coded else "there is nothing to train",
            hint="add adapters (easydel.lora.add_adapters), or load floats: without load_in_8bit, with dequantize=True",
        )
    tree = unflatten(trained)
    split = moment_shardings(optimizer, tree)
    moments = jax.jit(optimizer.init, out_shardings=split)(tree)
    first = next(iter(trained.values()))
    count = jax.device_put(jnp.zeros((), jnp.int32), _whole(first.sharding))
    return State(tree, unflatten({path: leaves[path] for path in leaves.keys() - trained.keys()}), moments, count)


def moment_shardings(optimizer: Optimizer, trained: Tree) -> Any:
    """Returns shardings of the optimizer's state: an array of a parameter and of its shape is split like it.

    Paths show what belongs to a parameter: in the state of optax, the path of a moment ends with its parameter's path.
    """
    homes = dict(jax.tree_util.tree_flatten_with_path(trained)[0])
    whole = _whole(next(iter(homes.values())).sharding)

    def split(path: tuple[Any, ...], leaf: Any) -> Sharding:
        owner = next((homes[path[start:]] for start in range(len(path)) if path[start:] in homes), None)
        return whole if owner is None or owner.shape != leaf.shape else owner.sharding

    return jax.tree_util.tree_map_with_path(split, jax.eval_shape(optimizer.init, trained))


def check_alive(tree: Any, what: str, hint: str) -> None:
    """Raises ArgumentError if arrays were given to a step, which overwrote them in place."""
    if any(
        isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted()
        for leaf in jax.tree.leaves(tree)
    ):
        raise ArgumentError(f"{what} were given to a step before, which overwrote them", hint=hint)


def without_arrays(tree: T) -> T:
    """Returns the shapes and shardings of a state, or a part of one, for restoring it."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def _default(model: LanguageModel, leaves: Mapping[str, Any]) -> Callable[[str], bool]:
    adapted, beside = any(path.endswith(ADAPTERS) for path in leaves), {*trained_with(model)}
    return lambda path: not adapted or path.endswith(ADAPTERS) or path in beside


def _whole(sharding: Sharding) -> Sharding:
    """Returns the sharding on the same devices that splits nothing."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
