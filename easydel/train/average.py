"""The exponential moving average of parameters, kept in the optimizer's state: split, saved and restored with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easydel.train.reading import needed
from easydel.tree import Tree


class Averaged(NamedTuple):
    """The state of an optimizer, and the average of the parameters in float32."""

    inner: Any
    average: Tree


def averaging(optimizer: Any, keep: float) -> Any:
    """Returns `optimizer`, with the average of all parameters so far beside its state; it starts as the first ones."""

    def init(params: Any) -> Averaged:
        # a copy: the step may overwrite the parameters in place
        return Averaged(optimizer.init(params), jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params))

    def update(gradients: Any, state: Averaged, params: Any) -> tuple[Any, Averaged]:
        updates, inner = optimizer.update(gradients, state.inner, params)

        def moved(average: jax.Array, leaf: jax.Array, update: jax.Array) -> jax.Array:
            return keep * average + (1 - keep) * (leaf + update).astype(jnp.float32)

        return updates, Averaged(inner, jax.tree.map(moved, state.average, params, updates))

    return needed("optax").GradientTransformation(init, update)


def averaged(trained: Tree, moments: Any) -> Tree:
    """Returns the averages of trained parameters in their dtypes; the parameters themselves if none are kept."""
    if not isinstance(moments, Averaged):
        return trained
    return jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), moments.average, trained)
