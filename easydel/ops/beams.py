"""One step of beam search, on arrays: transformers' rules, with its scores.

Each prompt has N running beams. Every step chooses the best continuations of all of them; those that end there compete,
by their sum of log probabilities divided by a power of their length, for the N places of ended texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

# B prompts, N beams of a prompt, R = B * N rows, V vocabulary, S slots of tokens, K continuations, E end tokens
NEVER = -1e9  # transformers' score of what must not be chosen: sums with it stay finite


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """Settings of a search with `width` beams, for at most `new` new tokens.

    A text's score is divided by its number of new tokens to the power `length_penalty`. `early_stopping` is True (a
    prompt is done with as many ended texts as beams), False (when no beam can beat them at its present length) or
    "never" (at any length).
    """

    length_penalty: Any
    new: Any
    width: int = field(metadata={"static": True})
    early_stopping: bool | str = field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Search:
    """A search between two steps: sums of log probabilities of running beams, and the texts that have ended.

    `texts_BNS` are the best ended texts in falling order of `final_BN`, of `lengths_BN` new tokens each; places where
    `ended_BN` is False are not taken yet. `open_B` is False for prompts whose ended texts cannot improve any more.
    """

    sums_BN: jax.Array
    texts_BNS: jax.Array
    lengths_BN: jax.Array
    final_BN: jax.Array
    ended_BN: jax.Array
    open_B: jax.Array
    done: jax.Array

    def grown(self, length: int) -> Search:
        """Returns the same search with room for texts of `length`."""
        room = length - self.texts_BNS.shape[2]
        return replace(self, texts_BNS=jnp.pad(self.texts_BNS, ((0, 0), (0, 0), (0, room))))


@dataclass(frozen=True)
class Step:
    """The running beams' next tokens, and the beam of the same prompt that each continues."""

    tokens_BN: jax.Array
    parents_BN: jax.Array


def start(tokens_BS: jax.Array, width: int) -> Search:
    """Returns the search before its first step. Only a prompt's first beam counts there: all beams are equal."""
    B = len(tokens_BS)
    zeros = jnp.zeros((B, width), jnp.float32)
    return Search(
        sums_BN=zeros.at[:, 1:].set(NEVER),
        texts_BNS=jnp.repeat(tokens_BS[:, None], width, axis=1),
        lengths_BN=jnp.zeros((B, width), jnp.int32),
        final_BN=zeros + NEVER,
        ended_BN=jnp.zeros((B, width), bool),
        open_B=jnp.ones(B, bool),
        done=jnp.zeros((), bool),
    )


def advance(
    search: Search,
    scores_RV: jax.Array,
    tokens_RS: jax.Array,
    slot: jax.Array,
    count: jax.Array,
    ends_E: jax.Array | None,
    beams: Beams,
) -> tuple[Search, Step]:
    """Returns the search after one more token, number `count` of the new ones, which goes to `slot`.

    `scores_RV` are log probabilities of the next token, `tokens_RS` the running beams' tokens so far.
    """
    sums_BK, parents_BK, tokens_BK = _continuations(search, scores_RV, ends_E, beams)
    ends_BK = jnp.broadcast_to(count + 1 >= beams.new, tokens_BK.shape)
    if ends_E is not None:
        ends_BK |= jnp.any(tokens_BK[..., None] == ends_E, axis=-1)
    running_BN, order_BN = jax.lax.top_k(sums_BK + jnp.where(ends_BK, NEVER, 0.0), beams.width)
    step = Step(*(jnp.take_along_axis(part, order_BN, axis=1) for part in (tokens_BK, parents_BK)))
    texts_BNS = _texts(tokens_RS, slot, tokens_BK[:, : beams.width], parents_BK[:, : beams.width])
    search = _with_ended(search, sums_BK, ends_BK, texts_BNS, count + 1, beams)
    open_B = search.open_B & _can_improve(search, running_BN, count + 1, beams)
    full = jnp.all(search.ended_BN) & (beams.early_stopping is True)
    done = ~jnp.any(open_B) | full | jnp.all(ends_BK)
    texts = (search.texts_BNS, search.lengths_BN, search.final_BN, search.ended_BN)
    return Search(running_BN, *texts, open_B, done), step


def _continuations(
    search: Search, scores_RV: jax.Array, ends_E: jax.Array | None, beams: Beams
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each prompt's best continuations in falling order: sums, beams and tokens [B, K].

    There are enough for N beams to go on even if every beam is continued by every end token, too.
    """
    B, N = search.sums_BN.shape
    K = max(2, 1 + (0 if ends_E is None else len(ends_E))) * N
    sums_RV = scores_RV + search.sums_BN.reshape(-1, 1)
    best_RK, ids_RK = jax.lax.top_k(sums_RV, min(K, sums_RV.shape[1]))
    ids_BC = ids_RK.reshape(B, -1).astype(jnp.int32)
    sums_BK, order_BK = jax.lax.top_k(best_RK.reshape(B, -1), K)
    parents_BK = (order_BK // best_RK.shape[1]).astype(jnp.int32)
    return sums_BK, parents_BK, jnp.take_along_axis(ids_BC, order_BK, axis=1)


def _texts(tokens_RS: jax.Array, slot: jax.Array, next_BN: jax.Array, parents_BN: jax.Array) -> jax.Array:
    """Returns the parents' tokens with the next one behind them, [B, N, S]."""
    tokens_BNS = tokens_RS.reshape(*parents_BN.shape, -1)
    parents_BNS = jnp.take_along_axis(tokens_BNS, parents_BN[..., None], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(parents_BNS, next_BN[..., None], slot, axis=2)


def _with_ended(
    search: Search, sums_BK: jax.Array, ends_BK: jax.Array, texts_BNS: jax.Array, length: jax.Array, beams: Beams
) -> Search:
    """Returns the search with those of the N best continuations among its ended texts that end, and are good enough."""
    N = beams.width
    full_B1 = jnp.all(search.ended_BN, axis=1, keepdims=True) & (beams.early_stopping is True)
    final_BN = sums_BK[:, :N] / _divisor(length, beams)
    for refused in (full_B1, ~search.open_B[:, None], ~ends_BK[:, :N]):
        final_BN += jnp.where(refused, NEVER, 0.0)
    lengths_BN = jnp.broadcast_to(length, final_BN.shape)
    final_BN, order_BN = jax.lax.top_k(jnp.concatenate([search.final_BN, final_BN], axis=1), N)

    def best(old: jax.Array, new: jax.Array) -> jax.Array:
        order = order_BN.reshape(*order_BN.shape, *(1,) * (old.ndim - 2))
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), order, axis=1)

    texts = best(search.texts_BNS, texts_BNS), best(search.lengths_BN, lengths_BN)
    ended_BN = best(search.ended_BN, ends_BK[:, :N])
    return Search(search.sums_BN, *texts, final_BN, ended_BN, search.open_B, search.done)


def _can_improve(search: Search, running_BN: jax.Array, length: jax.Array, beams: Beams) -> jax.Array:
    """Returns for each prompt whether its best running beam may still beat its worst ended text."""
    if beams.early_stopping == "never":  # with a reward for length, the longest text counts
        length = jnp.where(beams.length_penalty > 0, beams.new, length)
    worst_BN = jnp.where(search.ended_BN, jnp.min(search.final_BN, axis=1, keepdims=True), NEVER)
    return jnp.any(running_BN[:, :1] / _divisor(length, beams) > worst_BN, axis=1)


def _divisor(length: jax.Array, beams: Beams) -> jax.Array:
    return length.astype(jnp.float32) ** beams.length_penalty
