"""The compiled programs: a prompt's pass (whole or in three parts), the cache's growth, one step, a loop of steps.

The programs take parameters and states as plain pytrees and donate the state they get, so that the cache is updated in
place. They are compiled for shapes; everything else that differs between calls is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from easydel.decoder import Cache, make_context
from easydel.generate.beam_caches import of_beams, of_parents, repeated
from easydel.generate.cache_lengths import extended, sharded
from easydel.generate.prompt import Prompt
from easydel.layers.block import Flow
from easydel.layers.context import Context
from easydel.module import LanguageModel, program
from easydel.ops.beams import Beams, Search, advance, start
from easydel.ops.sampling import Rules, choose_tokens, final_scores, process
from easydel.tree import bind, replica

# B batch, T prompt slots, S cache slots, V vocabulary
Params = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """A decode between two steps. `tokens_BS` holds prompts and new tokens, in the same slots as the cache.

    `first_B` is the first slot of each row that is not padding, `slot` the slot of the next token, `count` the number
    of tokens made. Rows in `finished_B` have met an end token and continue with padding.
    In a beam search each prompt has a row for every beam, and `search` holds the beams' scores and the ended texts.
    """

    cache: Any
    tokens_BS: jax.Array
    first_B: jax.Array
    slot: jax.Array
    count: jax.Array
    finished_B: jax.Array
    search: Search | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Made:
    """The result of a step: a token for each row, whether all rows have finished, the scores if they are wanted."""

    tokens_B: jax.Array
    done: jax.Array
    scores_BV: jax.Array | None = None


def prefill(
    model: LanguageModel, params: Params, prompt: Prompt, source: Prompt | None, rules: Rules
) -> tuple[DecodeState, Made]:
    """Returns the state after the first new token, with room for the prompts alone. `source` is for an encoder."""
    B, T = prompt.ids_BT.shape
    own, cache = model.bound(params), model.init_cache(B, T)
    if source is None:
        inputs: dict[str, Any] = {"input_ids": prompt.ids_BT, "attention_mask": prompt.attended_BT}
    else:
        inputs = {"input_ids": source.ids_BT, "attention_mask": source.attended_BT, "decoder_input_ids": prompt.ids_BT}
        if T > 1:  # a single token is the first of every row
            inputs["decoder_attention_mask"] = prompt.attended_BT
        if source.marked_BT is not None:
            inputs["global_attention_mask"] = source.marked_BT
    hidden_BTD, cache = own.model(**inputs, cache=cache)
    logits_BV = own.record.logits(own.model, own.lm_head, hidden_BTD[:, -1:])[:, 0]
    return _first(model, cache, prompt, logits_BV, rules)


def enter(model: LanguageModel, outer: Params, prompt: Prompt) -> tuple[Flow, Context]:
    """Returns the first layer's input for the prompts, and the context of all layers.

    `outer` are the parameters without those of layers.
    """
    context, _ = _start(model, prompt)
    return model.bound(outer).model.enter(jnp.asarray(prompt.ids_BT), context)


@program(static=0)
def pass_layers(
    model: LanguageModel,
    kinds: Sequence[int],
    first: jax.Array,
    layers: Sequence[Params],
    flow: Flow,
    context: Context,
) -> tuple[Flow, list[Any]]:
    """Runs consecutive layers, from number `first` on. Returns the flow after them, and their caches.

    Their records are those of the layers with numbers `kinds`; their parameters are their own.
    """
    B, T = context.positions_BT.shape
    caches = []
    for number, (index, params) in enumerate(zip(kinds, layers, strict=True)):
        layer = replica(model.model.layers[index])
        bind(layer, params)
        empty = model.record.blocks[index].cache(B, T, model.policy.dtype)
        flow, cache = layer(flow, context.of_layer(first + number), empty)
        caches.append(sharded(cache, model.policy))
    return flow, caches


def leave(model: LanguageModel, outer: Params, flow: Flow, prompt: Prompt, rules: Rules) -> tuple[DecodeState, Made]:
    """Returns the state after the first new token, from the flow after the last layer; without the layers' caches."""
    own, (_, cache) = model.bound(outer), _start(model, prompt)
    logits_BV = own.record.logits(own.model, own.lm_head, own.model.leave(flow, last=True))[:, 0]
    return _first(model, cache, prompt, logits_BV, rules)


def _start(model: LanguageModel, prompt: Prompt) -> tuple[Context, Cache]:
    """Returns the layers' context, and the cache's book-keeping after the prompts."""
    shape = prompt.ids_BT.shape
    empty = {**model.record.slots(*shape), "layers": None}
    context, cache = make_context(shape, jnp.asarray(prompt.attended_BT), None, empty)
    assert cache is not None
    return context, cache


def _first(
    model: LanguageModel, cache: Any, prompt: Prompt, logits_BV: jax.Array, rules: Rules
) -> tuple[DecodeState, Made]:
    """Returns the state after the token chosen from `logits_BV`; nothing but the prompts was read into `cache`."""
    B, T = prompt.ids_BT.shape
    tokens_BS = jnp.pad(prompt.ids_BT, ((0, 0), (0, 1)))  # the first new token follows the prompt
    first_B = jnp.argmax(prompt.attended_BT, axis=1).astype(jnp.int32)
    slot, count = jnp.asarray(T, jnp.int32), jnp.asarray(0, jnp.int32)
    return _emit(model, DecodeState(cache, tokens_BS, first_B, slot, count, jnp.zeros((B,), bool)), logits_BV, rules)


@program(static=1)
def empty(model: LanguageModel, first_B: jax.Array, length: int) -> DecodeState:
    """Returns the state before any token is read, with room for `length` tokens."""
    B, zero = len(first_B), jnp.zeros((), jnp.int32)
    cache, tokens_BS = model.init_cache(B, length), jnp.zeros((B, length), jnp.int32)
    return _placed(model, DecodeState(cache, tokens_BS, first_B, zero, zero, jnp.zeros((B,), bool)))


@program(donate=1)
def extend(
    model: LanguageModel, params: Params, state: DecodeState, part: Prompt, start: jax.Array, count: jax.Array
) -> tuple[DecodeState, jax.Array]:
    """Reads the first `count` tokens of `part` into the slots from `start` on. Returns the state, and logits [B, V].

    The previous contents of these slots and of all later ones no longer count.
    """
    own, slots_S = model.bound(params), jnp.arange(state.tokens_BS.shape[1])
    before = {**state.cache, "offset": start, "valid": state.cache["valid"] & (slots_S < start)}
    inputs: dict[str, Any] = {"input_ids": part.ids_BT, "attention_mask": part.attended_BT}
    hidden_BTD, cache = own.model(**inputs, cache=before)
    last_B1D = jax.lax.dynamic_slice_in_dim(hidden_BTD, count - 1, 1, axis=1)
    logits_BV = own.record.logits(own.model, own.lm_head, last_B1D)[:, 0]
    tokens_BS = jax.lax.dynamic_update_slice_in_dim(state.tokens_BS, jnp.asarray(part.ids_BT), start, axis=1)
    made, finished_B = jnp.zeros_like(state.count), jnp.zeros_like(state.finished_B)
    end = start + count
    assert cache is not None
    state = DecodeState({**cache, "offset": end}, tokens_BS, state.first_B, end, made, finished_B)
    return _placed(model, state), logits_BV


@program(donate=0)
def emit(model: LanguageModel, state: DecodeState, logits_BV: jax.Array, rules: Rules) -> tuple[DecodeState, Made]:
    """Returns the state with the token chosen from `logits_BV`."""
    return _emit(model, state, logits_BV, rules)


@program(static=1)
def grow(model: LanguageModel, state: DecodeState, length: int) -> DecodeState:
    """Returns the same state with room for `length` tokens, if it has less."""
    B, length = state.tokens_BS.shape[0], max(length, state.tokens_BS.shape[1])
    shapes = jax.eval_shape(lambda: (model.init_cache(B, length), jnp.zeros((B, length), jnp.int32)))
    cache, tokens_BS = extended((state.cache, state.tokens_BS), shapes)
    search = None if state.search is None else state.search.grown(length)
    return _placed(model, replace(state, cache=cache, tokens_BS=tokens_BS, search=search))


@program(donate=1)
def step(model: LanguageModel, params: Params, state: DecodeState, rules: Rules) -> tuple[DecodeState, Made]:
    """Makes one more token for each row."""
    own = model.bound(params)
    last_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BS, state.slot - 1, 1, axis=1)
    inputs: dict[str, Any] = {model.record.fed: last_B1, "cache": state.cache}
    hidden_B1D, cache = own.model(**inputs)
    logits_BV = own.record.logits(own.model, own.lm_head, hidden_B1D)[:, 0]
    return _emit(model, replace(state, cache=cache), logits_BV, rules)


@program(donate=1)
def loop(
    model: LanguageModel, params: Params, state: DecodeState, rules: Rules, limit: jax.Array
) -> tuple[DecodeState, Made]:
    """Runs steps until all rows have finished, or have `limit` new tokens."""

    def goes_on(carry: tuple[DecodeState, Made]) -> jax.Array:
        return (carry[0].count < limit) & ~carry[1].done

    last_B = jnp.zeros_like(state.first_B)
    made = Made(last_B, jnp.all(state.finished_B))
    state, made = jax.lax.while_loop(goes_on, lambda carry: step(model, params, carry[0], rules), (state, made))
    return _placed(model, state), made  # constrained again: sharding inside while_loop does not carry to its result


def _emit(model: LanguageModel, state: DecodeState, logits_BV: jax.Array, rules: Rules) -> tuple[DecodeState, Made]:
    """Returns the state with the token chosen from `logits_BV`."""
    policy = model.policy
    # split as the head is: for whole logits XLA would gather the head, which is thousands of times as large
    logits_BV = policy.shard(logits_BV, policy.axes.batch_axis, policy.axes.vocab_axis)
    if rules.beams is not None:
        return _branch(model, state, logits_BV, rules, rules.beams)
    place = (logits_BV, _known(state, logits_BV.shape[-1]), state.slot, state.count, rules)
    next_B = choose_tokens(*place)
    scores_BV = policy.shard(final_scores(*place), None, None) if rules.scored else None
    finished_B = state.finished_B
    if rules.eos_E is not None:
        next_B = jnp.where(finished_B, rules.pad, next_B).astype(jnp.int32)
        finished_B |= jnp.any(next_B[:, None] == rules.eos_E, axis=1)
    next_B = policy.shard(next_B, None)
    tokens_BS = jax.lax.dynamic_update_slice_in_dim(state.tokens_BS, next_B[:, None], state.slot, axis=1)
    made = Made(next_B, jnp.all(finished_B), scores_BV)
    state = replace(state, tokens_BS=tokens_BS, slot=state.slot + 1, count=state.count + 1, finished_B=finished_B)
    return _placed(model, state), made


def _branch(
    model: LanguageModel, state: DecodeState, logits_BV: jax.Array, rules: Rules, beams: Beams
) -> tuple[DecodeState, Made]:
    """Returns the state with the next token of each beam, which continues the best beams of its prompt."""
    if state.search is None:  # after the prompts
        state, logits_BV = _with_beams(state, beams.width), jnp.repeat(logits_BV, beams.width, axis=0)
    assert state.search is not None
    logs_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)  # transformers' precision here
    scores_BV = process(logs_BV, _known(state, logs_BV.shape[-1]), state.slot, state.count, rules)
    search, chosen = advance(state.search, scores_BV, state.tokens_BS, state.slot, state.count, rules.eos_E, beams)
    next_B = model.policy.shard(chosen.tokens_BN.reshape(-1), None)
    tokens_BS = of_beams(state.tokens_BS, chosen.parents_BN)
    tokens_BS = jax.lax.dynamic_update_slice_in_dim(tokens_BS, next_B[:, None], state.slot, axis=1)
    state = replace(
        state,
        cache=of_parents(state.cache, chosen.parents_BN),
        tokens_BS=tokens_BS,
        slot=state.slot + 1,
        count=state.count + 1,
        finished_B=jnp.broadcast_to(search.done, next_B.shape),
        search=jax.tree.map(lambda part: model.policy.shard(part, *[None] * part.ndim), search),
    )
    return _placed(model, state), Made(next_B, search.done)


def _with_beams(state: DecodeState, width: int) -> DecodeState:
    """Returns the state with `width` equal rows for each prompt."""
    rows = (jnp.repeat(part, width, axis=0) for part in (state.tokens_BS, state.first_B, state.finished_B))
    tokens_BS, first_B, finished_B = rows
    cache, search = repeated(state.cache, width), start(state.tokens_BS, width)
    return DecodeState(cache, tokens_BS, first_B, state.slot, state.count, finished_B, search)


def _known(state: DecodeState, outside: int) -> jax.Array:
    """Returns the tokens so far, and `outside` in slots that do not count."""
    slots_S = jnp.arange(state.tokens_BS.shape[1])
    counts_BS = (slots_S >= state.first_B[:, None]) & (slots_S < state.slot)
    return jnp.where(counts_BS, state.tokens_BS, outside)


def _placed(model: LanguageModel, state: DecodeState) -> DecodeState:
    """Splits the cache over the mesh, and keeps tokens whole on every device, so that any process can read them."""
    tokens_BS = model.policy.shard(state.tokens_BS, None, None)
    return replace(state, cache=sharded(state.cache, model.policy), tokens_BS=tokens_BS)
