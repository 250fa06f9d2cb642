"""From prompts to the state after the first new token: in one pass, in parts, or from an earlier turn's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from easydel.generate.cache_lengths import cache_lengths, prompt_bucket
from easydel.generate.prefill_by_layer import first_pass
from easydel.generate.programs import DecodeState, Made, emit, empty, extend, grow
from easydel.generate.prompt import Prompt
from easydel.generate.prompt_cache import PromptCache
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules

Params = Mapping[str, Any]


def begin(
    model: LanguageModel,
    params: Params,
    prompt: Prompt,
    source: Prompt | None,
    rules: Rules,
    kept: PromptCache | None = None,
    chunk: int | None = None,
) -> tuple[DecodeState, Made, int]:
    """Returns the state, its first token, and that token's slot. At most `chunk` tokens are read at once."""
    found = None if kept is None else kept.take(model, params, prompt)
    if found is not None:
        state, start, rest = found
        return _read(model, params, state, rest, start, rules, min(chunk or rest.length, rest.length))
    if source is not None or chunk is None or prompt.length <= chunk:
        return *first_pass(model.compiled, model, params, prompt, source, rules), prompt.length
    prompt = prompt.padded(-(-prompt.length // chunk) * chunk)
    first_B = np.argmax(prompt.attended_BT, axis=1).astype(np.int32)
    state = model.compiled(empty)(first_B, cache_lengths(prompt.length, 1)[-1])
    return _read(model, params, state, prompt, 0, rules, chunk)


def _read(
    model: LanguageModel, params: Params, state: DecodeState, prompt: Prompt, start: int, rules: Rules, chunk: int
) -> tuple[DecodeState, Made, int]:
    """Reads `prompt` from slot `start` on, `chunk` tokens at a time; the last chunk is padded on the right."""
    size, end = prompt_bucket(chunk) if chunk == prompt.length else chunk, start + prompt.length
    room = cache_lengths(start + -(-prompt.length // size) * size, 1)[-1]
    room = max(room, cache_lengths(state.tokens_BS.shape[1], 0)[-1])  # after one new token there is one more than slots
    if state.cache["valid"].shape[1] < room:
        state = model.compiled(grow)(state, room)
    logits_BV = None
    for place in range(start, end, size):
        part = prompt.part(place - start, min(size, end - place))
        read = model.compiled(extend)
        state, logits_BV = read(params, state, part.extended(size), np.int32(place), np.int32(part.length))
    return *model.compiled(emit)(state, logits_BV, rules), end
