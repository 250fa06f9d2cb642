"""From logits to the next token: transformers' processors, by its names, in its order, with its results.

A processor that is off is None in its record, so that the structure of the records shapes a program. Values are traced:
changing them compiles nothing. Nothing sorts the vocabulary: on a CPU that costs more than a small model's pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from easydel.ops.beams import Beams

# B batch, V vocabulary, N tokens that are still in the choice, S slots of tokens, E ends, F forced tokens
NEVER = -jnp.inf
# A function of tokens so far [B, S], with a number past the vocabulary where there is none, and of scores [B, V]. It
# returns other scores, and is compiled.
Processor = Callable[[jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Settings of a draw. `key` is a key's raw data. Only the best `candidates` (`top_k` or more) are drawn."""

    key: Any
    temperature: Any
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    candidates: int = field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rules:
    """Settings of choosing the next token: the likeliest, by `sampling`, or in `beams`, after changes to the scores.

    Before `min_new_tokens` no token of `eos_E` is chosen. Token `forced_F[i]` is forced as new token `forced_at_F[i]`.
    The last token of each row of `bad_words_NL` is not chosen after the others, where -1 is any token; `suppressed_T`
    never are.
    No run of `encoder_no_repeat_ngram_size` tokens of `source_BS` is repeated, a row for each prompt; numbers past the
    vocabulary are no tokens.
    `processors` change the scores at the end. With `scored` each step gives its scores, too.
    """

    sampling: Sampling | None = None
    eos_E: Any = None
    pad: Any = 0
    min_new_tokens: Any = None
    forced_F: Any = None
    forced_at_F: Any = None
    repetition_penalty: Any = None
    beams: Beams | None = None
    bad_words_NL: Any = None
    suppressed_T: Any = None
    source_BS: Any = None
    no_repeat_ngram_size: int = field(default=0, metadata={"static": True})
    encoder_no_repeat_ngram_size: int = field(default=0, metadata={"static": True})
    processors: tuple[Processor, ...] = field(default=(), metadata={"static": True})
    scored: bool = field(default=False, metadata={"static": True})


def choose_tokens(
    logits_BV: jax.Array, tokens_BS: jax.Array, slot: jax.Array, count: jax.Array, rules: Rules
) -> jax.Array:
    """Returns the next token of each row, [B]: number `count` of the new ones, which goes to `slot`.

    `tokens_BS` are the tokens so far, with a number past the vocabulary in slots that do not count. A row's random
    numbers depend on the seed, `count` and the row's index alone.
    """
    scores_BV = process(logits_BV.astype(jnp.float32), tokens_BS, slot, count, rules)  # transformers' precision here
    if rules.sampling is None:
        return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    scores_BN, ids_BN = warp(scores_BV, rules.sampling)
    key = jax.random.fold_in(jax.random.wrap_key_data(rules.sampling.key), count)
    rows = jnp.arange(scores_BN.shape[0])
    drawn_B = jax.vmap(lambda row, scores: jax.random.categorical(jax.random.fold_in(key, row), scores))(
        rows, scores_BN
    )
    if ids_BN is None:
        return drawn_B.astype(jnp.int32)
    return jnp.take_along_axis(ids_BN, drawn_B[:, None], axis=1)[:, 0]


def process(scores_BV: jax.Array, tokens_BS: jax.Array, slot: jax.Array, count: jax.Array, rules: Rules) -> jax.Array:
    """Returns the scores after all processors that also apply without sampling."""
    if rules.repetition_penalty is not None:
        scores_BV = penalize(scores_BV, tokens_BS, rules.repetition_penalty)
    if rules.no_repeat_ngram_size:
        scores_BV = ban_repeated_ngrams(scores_BV, tokens_BS, slot, rules.no_repeat_ngram_size)
    if rules.source_BS is not None:
        source_BS = jnp.repeat(rules.source_BS, len(scores_BV) // len(rules.source_BS), axis=0)  # for every beam
        size = rules.encoder_no_repeat_ngram_size
        scores_BV = ban_repeated_ngrams(scores_BV, tokens_BS, slot, size, source_BS)
    if rules.bad_words_NL is not None:
        scores_BV = ban_words(scores_BV, tokens_BS, slot, rules.bad_words_NL)
    if rules.min_new_tokens is not None and rules.eos_E is not None:
        without_end = scores_BV.at[:, rules.eos_E].set(NEVER, mode="drop")
        scores_BV = jnp.where(count < rules.min_new_tokens, without_end, scores_BV)
    if rules.forced_F is not None:
        now_F = rules.forced_at_F == count
        token = jnp.max(jnp.where(now_F, rules.forced_F, -1))
        forced_V = jnp.where(jnp.arange(scores_BV.shape[-1]) == token, 0.0, NEVER)
        scores_BV = jnp.where(jnp.any(now_F), forced_V, scores_BV)
    if rules.suppressed_T is not None:
        scores_BV = scores_BV.at[:, rules.suppressed_T].set(NEVER, mode="drop")
    for processor in rules.processors:
        scores_BV = processor(tokens_BS, scores_BV)
    return scores_BV


def final_scores(
    logits_BV: jax.Array, tokens_BS: jax.Array, slot: jax.Array, count: jax.Array, rules: Rules
) -> jax.Array:
    """Returns the scores [B, V] that `choose_tokens` chooses by, -inf for tokens that are out of the choice."""
    scores_BV = process(logits_BV.astype(jnp.float32), tokens_BS, slot, count, rules)
    if rules.sampling is None:
        return scores_BV
    scores_BN, ids_BN = warp(scores_BV, rules.sampling)
    if ids_BN is None:
        return scores_BN
    rows = jnp.arange(len(scores_BN))[:, None]
    return jnp.full_like(scores_BV, NEVER).at[rows, ids_BN].set(scores_BN)


def warp(scores_BV: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array | None]:
    """Returns scores of the tokens to draw from, and their ids (None: all tokens in order)."""
    scores_BN, ids_BN = scores_BV / sampling.temperature, None
    if sampling.top_k is not None:
        scores_BN, ids_BN = keep_top_k(scores_BN, sampling.top_k, sampling.candidates)
    if sampling.top_p is not None:
        scores_BN = keep_top_p(scores_BN, sampling.top_p)
    if sampling.min_p is not None:
        scores_BN = keep_min_p(scores_BN, sampling.min_p)
    return scores_BN, ids_BN


def penalize(scores_BV: jax.Array, tokens_BS: jax.Array, penalty: jax.Array) -> jax.Array:
    """Divides positive scores of tokens that occurred before by `penalty`, and multiplies negative ones by it."""
    known_BS = jnp.take_along_axis(scores_BV, tokens_BS, axis=1, mode="clip")
    changed_BS = jnp.where(known_BS < 0, known_BS * penalty, known_BS / penalty)
    return scores_BV.at[jnp.arange(scores_BV.shape[0])[:, None], tokens_BS].set(changed_BS, mode="drop")


def ban_repeated_ngrams(
    scores_BV: jax.Array, tokens_BS: jax.Array, slot: jax.Array, size: int, source_BS: jax.Array | None = None
) -> jax.Array:
    """Masks tokens that would complete, in `slot`, a run of `size` tokens that occurred before, or in `source_BS`."""
    if size > tokens_BS.shape[1]:  # a run of so many tokens has no room
        return scores_BV
    source_BS = tokens_BS if source_BS is None else source_BS
    (B, S), outside = source_BS.shape, scores_BV.shape[-1]
    run = jax.lax.dynamic_slice_in_dim(tokens_BS, slot - size + 1, size - 1, axis=1)
    later_BS = jnp.pad(source_BS, ((0, 0), (0, size)), constant_values=outside)
    same_BS = jnp.broadcast_to((slot >= size - 1) & jnp.all(run < outside, axis=-1, keepdims=True), (B, S))
    for place in range(size - 1):
        same_BS &= later_BS[:, place : place + S] == run[:, place : place + 1]
    banned_BS = jnp.where(same_BS, later_BS[:, size - 1 : size - 1 + S], outside)
    return scores_BV.at[jnp.arange(B)[:, None], banned_BS].set(NEVER, mode="drop")


def ban_words(scores_BV: jax.Array, tokens_BS: jax.Array, slot: jax.Array, words_NL: jax.Array) -> jax.Array:
    """Masks the last token of each word whose other tokens are in the slots before `slot`."""
    length = words_NL.shape[1]
    padded_BS = jnp.pad(tokens_BS, ((0, 0), (length, 0)), constant_values=scores_BV.shape[-1])
    before_BL = jax.lax.dynamic_slice_in_dim(padded_BS, slot + 1, length - 1, axis=1)
    same_BNL = (before_BL[:, None] == words_NL[None, :, :-1]) | (words_NL[None, :, :-1] < 0)
    rows, last_N = jnp.arange(scores_BV.shape[0])[:, None], words_NL[:, -1]
    banned_BN = jnp.where(jnp.all(same_BNL, axis=-1), last_N, scores_BV.shape[-1])
    return scores_BV.at[rows, banned_BN].set(NEVER, mode="drop")


def keep_top_k(scores_BV: jax.Array, k: jax.Array, candidates: int) -> tuple[jax.Array, jax.Array]:
    """Returns the `candidates` best scores in falling order, those below the `k`-th masked, and their ids."""
    best_BN, ids_BN = jax.lax.top_k(scores_BV, candidates)
    last_B1 = jnp.take(best_BN, k - 1, axis=1, mode="clip")[:, None]
    return jnp.where(best_BN < last_B1, NEVER, best_BN), ids_BN


def keep_top_p(scores_BN: jax.Array, p: jax.Array) -> jax.Array:
    """Masks all but the smallest set of tokens whose probabilities sum to `p`; ties are kept.

    Instead of sorting, it finds the smallest probability to keep by halving an interval of floats, read as the integers
    that have the same bits: for positive floats these have the same order.
    """
    probabilities_BN = jax.nn.softmax(scores_BN, axis=-1)
    bits_BN = jax.lax.bitcast_convert_type(probabilities_BN, jnp.int32)

    def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = (low + high) // 2
        above = jnp.sum(jnp.where(bits_BN > middle, probabilities_BN, 0), axis=-1, keepdims=True)
        return jnp.where(above < p, low, middle + 1), jnp.where(above < p, middle, high)

    top = jnp.max(bits_BN, axis=-1, keepdims=True)
    _, least = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(top), top))  # 1.0 is less than 2 ** 30
    return jnp.where(bits_BN < least, NEVER, scores_BN)


def keep_min_p(scores_BN: jax.Array, p: jax.Array) -> jax.Array:
    """Masks tokens less than `p` times as likely as the likeliest."""
    share_BN = jnp.exp(scores_BN - jnp.max(scores_BN, axis=-1, keepdims=True))
    return jnp.where(share_BN < p, NEVER, scores_BN)
