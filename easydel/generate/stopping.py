"""Stop strings: rows end where their text has one of them, as it is known only outside of programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from easydel.errors import ArgumentError

Decode = Callable[[Sequence[int]], str]
LEAST_TOKENS = 8  # decoded at a time beside one for each character: a character may have several tokens


class Stop:
    """Watches the new tokens [B] of each step. `lengths` are the rows' numbers of tokens, once they have ended.

    A row ends with the token that completes one of `strings`, which stays, or with one of `ends`.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, ends: Sequence[int], rows: int):
        self.strings, self.decode, self.ends = tuple(strings), decode, frozenset(ends)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.lengths: list[int | None] = [None] * rows
        self.window = max(map(len, self.strings)) + LEAST_TOKENS

    def reached(self, tokens_B: np.ndarray) -> bool:
        """Takes the tokens of one step, and says whether all rows have ended."""
        for row, token in enumerate(tokens_B.tolist()):
            if self.lengths[row] is None:
                self.tokens[row].append(token)
                if token in self.ends or self._complete(self.tokens[row]):
                    self.lengths[row] = len(self.tokens[row])
        return None not in self.lengths

    def _complete(self, tokens: Sequence[int]) -> bool:
        text = self.decode(tokens[-self.window :])
        return any(string in text for string in self.strings)

    def cut(self, tokens_BT: np.ndarray, pad: int) -> np.ndarray:
        """Returns the tokens with padding behind the end of each row, as long as the longest row."""
        lengths = np.array([tokens_BT.shape[1] if length is None else length for length in self.lengths])
        behind = np.arange(tokens_BT.shape[1]) >= lengths[:, None]
        return np.where(behind, pad, tokens_BT)[:, : int(lengths.max())]


def decoder_of(tokenizer: Any) -> Decode:
    """Returns a function from tokens to text. ArgumentError if there is no tokenizer, or one that cannot decode."""
    if not hasattr(tokenizer, "decode"):
        raise ArgumentError("stop_strings need a tokenizer", hint="pass tokenizer=load_tokenizer(...)")
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False)
