"""The computed state of a conversation, kept for its next turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from easydel.errors import ArgumentError
from easydel.generate.programs import DecodeState
from easydel.generate.prompt import Prompt
from easydel.module import LanguageModel

Params = Mapping[str, Any]


class PromptCache:
    """Keys and values of one sequence, from call to call of `generate(..., prompt_cache=cache)`.

    A call computes only the part of its prompt that differs from the tokens read and made before, counted from the
    beginning; its result is the same as without the cache. It holds arrays on the model's devices until `clear`. Models
    with recurrent mixers cannot go back to an earlier token: their prompts are always computed anew. So are those of
    models with windows if the conversation is more than 64 tokens longer than the window, and the prompt goes back by
    more than 64 tokens from the furthest token that was ever read.
    """

    def __init__(self) -> None:
        self.reused = 0
        """Number of tokens that the last call did not have to compute."""
        self._state: DecodeState | None = None
        self._owner: tuple[LanguageModel, list[Any]] | None = None
        self._end = 0  # counts all slots ever written, including those of abandoned turns

    def clear(self) -> None:
        """Drops the kept state."""
        self._state, self._owner, self.reused, self._end = None, None, 0, 0

    def take(self, model: LanguageModel, params: Params, prompt: Prompt) -> tuple[DecodeState, int, Prompt] | None:
        """Returns the state, the slot to continue from, and the rest of the prompt; None if nothing can be used.

        The state is given away (programs donate it): if a call fails, the next one begins anew. Raises ArgumentError if
        `prompt` has several rows.
        """
        if len(prompt.ids_BT) != 1:
            raise ArgumentError(
                f"prompt_cache holds one sequence, but there are {len(prompt.ids_BT)}", hint="use one for each"
            )
        state, end, owned = self._state, self._end, self._owner is not None and _same(self._owner, model, params)
        self.clear()
        if state is None or not owned:
            return None
        first, slot = int(state.first_B[0]), int(state.slot)
        attended = np.flatnonzero(prompt.attended_BT[0])
        # masked tokens between attended ones would lie in slots of their own, which the kept state does not have
        if len(attended) < np.ptp(attended) + 1 or not np.asarray(state.cache["valid"])[0, first : slot - 1].all():
            return None
        tokens = prompt.ids_BT[0][attended]
        known = np.asarray(state.tokens_BS)[0, first : slot - 1]  # the last token was made, but never read
        shared = min(len(known), len(tokens) - 1)
        differ = np.flatnonzero(known[:shared] != tokens[:shared])
        common = int(differ[0]) if len(differ) else shared
        if common == 0 or not _within_reach(model, state, end, first + common):
            return None
        self.reused, self._end = common, end
        rest = tokens[None, common:]
        return state, first + common, Prompt(rest, np.ones(rest.shape, bool))

    def keep(self, model: LanguageModel, params: Params, state: DecodeState) -> None:
        """Takes over the state that a call leaves behind."""
        end = max(self._end, int(state.cache["offset"]))
        if model.record.rewinds(state.cache["valid"].shape[1], end) != 0:
            self._state, self._owner, self._end = state, (model, jax.tree.leaves(params)), end


def _within_reach(model: LanguageModel, state: DecodeState, end: int, slot: int) -> bool:
    """True if every layer's cache still holds what a token at `slot` may attend to, after `end` slots were written."""
    reach = model.record.rewinds(state.cache["valid"].shape[1], end)
    return reach is None or end - slot <= reach


def _same(owner: tuple[LanguageModel, list[Any]], model: LanguageModel, params: Params) -> bool:
    """True if the very same arrays computed the kept state."""
    leaves = jax.tree.leaves(params)
    return owner[0] is model and len(leaves) == len(owner[1]) and all(map(lambda a, b: a is b, leaves, owner[1]))
