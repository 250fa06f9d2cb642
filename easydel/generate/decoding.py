"""Runs the compiled programs, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from easydel.generate.cache_lengths import cache_stages
from easydel.generate.precompile import finish_compiling
from easydel.generate.prefill import begin
from easydel.generate.programs import DecodeState, Made, grow, loop, step
from easydel.generate.prompt import Prompt
from easydel.generate.prompt_cache import PromptCache
from easydel.generate.stopping import Stop
from easydel.generate.streamers import Listen
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules

Params = Mapping[str, Any]


def decode(
    model: LanguageModel,
    params: Params,
    prompt: Prompt,
    source: Prompt | None,
    rules: Rules,
    new: int,
    listen: Listen | None,
    *,
    stop: Stop | None = None,
    kept: PromptCache | None = None,
    chunk: int | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the new tokens [B, at most `new`], and each step's scores [B, V] if the rules want them.

    `listen` gets the tokens of each step as soon as they are made, and `stop` may end it. `kept` holds the state that
    an earlier call left, and takes this call's. At most `chunk` tokens are read at once.
    """
    state, made, slots = begin(model, params, prompt, source, rules, kept, chunk)
    scores: list[np.ndarray] = []
    if listen is None and stop is None and not rules.scored:
        tokens_BT, state = looped(model, params, state, made, rules, new, slots)
    else:
        hear = _ears(listen, stop, scores)
        tokens_BT, state = _streamed(hear, model, params, state, made, rules, new, slots)
    if kept is not None:
        kept.keep(model, params, state)
    return (tokens_BT if stop is None else stop.cut(tokens_BT, int(rules.pad))), scores


def _ears(listen: Listen | None, stop: Stop | None, scores: list[np.ndarray]) -> Callable[[Made], bool]:
    """Returns a function of each step that passes it on, and says whether it is the last."""

    def hear(made: Made) -> bool:
        tokens_B = np.asarray(made.tokens_B)
        if listen is not None:
            listen(tokens_B)
        if made.scores_BV is not None:
            scores.append(np.asarray(made.scores_BV))
        return (stop is not None and stop.reached(tokens_B)) or bool(made.done)

    return hear


def looped(
    model: LanguageModel, params: Params, state: DecodeState, made: Made, rules: Rules, new: int, slots: int
) -> tuple[np.ndarray, DecodeState]:
    """Decodes by loops inside programs, one program for each length of the cache."""
    finish_compiling(model)
    for length, limit in cache_stages(slots, new):
        state = model.compiled(grow)(state, length)
        state, made = model.compiled(loop)(params, state, rules, np.int32(limit))
        if limit == new or bool(made.done):
            break
    return np.asarray(state.tokens_BS)[:, slots : slots + int(state.count)], state


def _streamed(
    hear: Callable[[Made], bool],
    model: LanguageModel,
    params: Params,
    state: DecodeState,
    made: Made,
    rules: Rules,
    new: int,
    slots: int,
) -> tuple[np.ndarray, DecodeState]:
    """Starts each step before waiting for the tokens of the one before, except the first step, which may compile."""
    tokens = [np.asarray(made.tokens_B)]
    last = hear(made)
    finish_compiling(model)
    steps = _steps(model, params, state, rules, new, slots)
    coming = None if last else next(steps, None)
    while coming is not None:
        (state, made), coming = coming, next(steps, None)
        state = state if coming is None else coming[0]  # the step that was started has consumed the cache
        tokens.append(np.asarray(made.tokens_B))
        if hear(made):
            break
    return np.stack(tokens, axis=1), state


def _steps(
    model: LanguageModel, params: Params, state: DecodeState, rules: Rules, new: int, slots: int
) -> Iterator[tuple[DecodeState, Made]]:
    """Yields the steps after the first token, each started when it is asked for."""
    count = 1
    for length, limit in cache_stages(slots, new):
        state = model.compiled(grow)(state, length)
        while count < limit:
            state, made = model.compiled(step)(params, state, rules)
            count += 1
            yield state, made
