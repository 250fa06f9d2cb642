"""Tokens sent to the devices that have their experts, and back: experts stay, and no token is ever left out.

Arrays have static shapes, so each device has a fixed number of places for what it sends to each other one. What finds
no place waits for the next round, and there are as many rounds as the fullest queue needs: one, if the load is even.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easydel.ops.pairs import at, in_order, no_gradient, sent, summed

# N tokens on this device, K choices of each, M pairs of both, P queues, C places of each, S places of all, D model
Mix = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
EVEN = 1.25  # the load of the fullest queue over the mean, at most, for which one round is enough


def places_for(mean: float) -> int:
    """Returns the places of a queue that gets `mean` pairs on the average, and three deviations of pure chance more."""
    places = math.ceil(EVEN * mean + 3 * math.sqrt(mean))
    return places if places < 8 else -(-places // 8) * 8


class Queues(NamedTuple):
    """Pairs of a token and a choice, in the queues that they wait in: their order by queue, and each one's place."""

    order_M: jax.Array
    queue_M: jax.Array
    place_M: jax.Array
    first_P: jax.Array
    sizes_P: jax.Array

    @classmethod
    def of(cls, queue_M: jax.Array, queues: int) -> Queues:
        """Returns the queues of all pairs; a pair of queue number `queues` waits in none."""
        order_M, position_M, sizes_P = in_order(queue_M, queues)
        first_P = jnp.cumsum(sizes_P) - sizes_P
        return cls(order_M, queue_M, position_M - at(first_P, queue_M, 0), first_P, sizes_P)

    def served(self, number: jax.Array, places: int) -> tuple[jax.Array, jax.Array]:
        """Returns, for one round, the pair in each place and the place of each pair; numbers beyond all mean none."""
        pairs, queues, start = self.order_M.shape[0], self.sizes_P.shape[0], number * places
        place_C = start + jnp.arange(places)
        at_PC = jnp.minimum(self.first_P[:, None] + place_C, pairs - 1)
        pair_S = jnp.where(place_C < self.sizes_P[:, None], self.order_M[at_PC], pairs).reshape(-1)
        place_M = self.place_M - start
        here_M = (place_M >= 0) & (place_M < places) & (self.queue_M < queues)
        return pair_S, jnp.where(here_M, self.queue_M * places + place_M, queues * places)


@dataclass(frozen=True)
class Exchange:
    """The exchange of tokens over mesh axes `axes`, in rounds of `places` for each device; without axes, in turns.

    `mix` returns the weighted outputs [S, D] of a device's experts, from their parameters, rows [S, D], weights [S] and
    the number of each row's expert. `everywhere` are all axes of the mesh: all devices take the same number of rounds.
    """

    mix: Mix
    axes: tuple[str, ...]
    everywhere: tuple[str, ...]
    places: int

    def __call__(
        self, params: Any, x_ND: jax.Array, weights_NK: jax.Array, expert_NK: jax.Array, queue_NK: jax.Array, here: int
    ) -> jax.Array:
        """Returns the sum of each token's weighted outputs, [N, D] in float32.

        `expert_NK` are numbers on the device of the queue `queue_NK`; `here` experts are on each.
        """
        queues = math.prod(jax.lax.axis_size(axis) for axis in self.axes)
        waiting = Queues.of(queue_NK.reshape(-1), queues)
        arguments = (params, x_ND, weights_NK, jnp.clip(expert_NK, 0, here), waiting)
        one_round = partial(_round, self, here)
        if self.places >= expert_NK.size:
            return one_round(jnp.int32(0), arguments)
        rounds = -(-jnp.max(waiting.sizes_P) // self.places)
        if self.axes:
            rounds = jax.lax.pmax(rounds, self.everywhere)
        return _in_rounds(one_round, rounds, arguments)

    def swapped(self, rows: jax.Array) -> jax.Array:
        """Returns what the other devices have for this one, in the place of what it has for them."""
        return jax.lax.all_to_all(rows, self.axes, 0, 0, tiled=True) if self.axes else rows


def _round(exchange: Exchange, here: int, number: jax.Array, arguments: Any) -> jax.Array:
    params, x_ND, weights_NK, expert_NK, waiting = arguments
    pair_S, place_M = waiting.served(number, exchange.places)
    place_NK = place_M.reshape(expert_NK.shape)
    x_SD = exchange.swapped(sent(x_ND, pair_S, place_NK))
    weights_S = exchange.swapped(at(weights_NK.reshape(-1), pair_S, 0))
    expert_S = exchange.swapped(at(expert_NK.reshape(-1), pair_S, here))
    y_SD = exchange.swapped(exchange.mix(params, x_SD, weights_S, expert_S))
    return summed(y_SD, pair_S, place_NK)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_rounds(function: Callable[[jax.Array, Any], jax.Array], rounds: jax.Array, arguments: Any) -> jax.Array:
    """Returns the sum of `function(number, arguments)` over all rounds. The backward pass computes each again."""
    like = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.int32), arguments)

    def step(number: jax.Array, total: jax.Array) -> jax.Array:
        return total + function(number, arguments)

    return jax.lax.fori_loop(0, rounds, step, jnp.zeros(like.shape, like.dtype))


def _rounds_forward(function: Any, rounds: jax.Array, arguments: Any) -> tuple[jax.Array, Any]:
    return _in_rounds(function, rounds, arguments), (rounds, arguments)


def _rounds_backward(function: Any, saved: Any, dy: jax.Array) -> tuple[Any, Any]:
    rounds, arguments = saved
    leaves, structure = jax.tree.flatten(arguments)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def of_floats(number: jax.Array, given: Sequence[jax.Array]) -> jax.Array:
        values = iter(given)
        merged = [next(values) if real else leaf for real, leaf in zip(floats, leaves, strict=True)]
        return function(number, jax.tree.unflatten(structure, merged))

    known = [leaf for real, leaf in zip(floats, leaves, strict=True) if real]

    def step(number: jax.Array, total: list[jax.Array]) -> list[jax.Array]:
        _, pull = jax.vjp(partial(of_floats, number), known)
        return jax.tree.map(jnp.add, total, pull(dy)[0])

    found = iter(jax.lax.fori_loop(0, rounds, step, [jnp.zeros_like(leaf) for leaf in known]))
    gradients = [next(found) if real else no_gradient(leaf) for real, leaf in zip(floats, leaves, strict=True)]
    return no_gradient(rounds), jax.tree.unflatten(structure, gradients)


_in_rounds.defvjp(_rounds_forward, _rounds_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def added_up(y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns the sum over mesh axes of what each device has, inside of a `shard_map` that returns it as one array.

    The gradient that arrives is then the same on all of them, a share of the whole, and need not be added up again.
    """
    return jax.lax.psum(y, axes)


added_up.defvjp(
    lambda y, axes: (added_up(y, axes), None),
    lambda axes, _, dy: (dy * math.prod(jax.lax.axis_size(axis) for axis in axes),),
)
