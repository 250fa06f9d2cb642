"""Text to batches: documents joined, each with its end token, into one row of tokens, cut into pieces of equal length.

That is packing in its plainest form. A piece may hold the end of one document and the beginning of the next. Its tokens
see all tokens before them in the piece, or, if the token that ends documents is given, their own document only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from easydel.errors import ArgumentError
from easydel.train.reading import needed


def packed(texts: Iterable[str], encode: Callable[[str], Sequence[int]], end: int | None) -> np.ndarray:
    """Returns the tokens of all `texts`, int32, each text with the token `end` after it (None: no such token)."""
    if isinstance(texts, str):
        raise ArgumentError("texts is one text, expected several", hint="pass [text]")
    rows = []
    for text in texts:
        ids = list(encode(text))
        rows.append(np.asarray(ids if end is None or ids[-1:] == [end] else [*ids, end], np.int32))
    return np.concatenate(rows) if rows else np.zeros(0, np.int32)


@dataclass(frozen=True)
class Pieces:
    """Pieces of `length` tokens; what remains at the end of `tokens` is not used. A source for grain.

    With `end`, a piece has `segment_ids`: the number of these tokens before each token. Raises ArgumentError if there
    are not enough tokens for one piece, or `end` is not among them.
    """

    tokens: np.ndarray
    length: int
    end: int | None = None

    def __post_init__(self) -> None:
        if not len(self):
            raise ArgumentError(f"the text has {len(self.tokens)} tokens, not enough for one piece of {self.length}")
        if self.end is not None and self.end not in self.tokens:
            raise ArgumentError(
                f"no document ends with token {self.end}", hint="join them by packed(texts, encode, end)"
            )

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = self.tokens[index * self.length : (index + 1) * self.length]
        if self.end is None:
            return {"input_ids": tokens}
        ends = tokens == self.end
        return {"input_ids": tokens, "segment_ids": np.cumsum(ends, dtype=np.int32) - ends}


def batches(tokens: np.ndarray, length: int, batch: int, seed: int, end: int | None = None) -> Any:
    """Returns an endless iterator of {"input_ids": [batch, length]}, shuffled anew each time around.

    It is grain's, with `get_state` and `set_state` for its position. With `end`, the token that ends documents, it also
    yields "segment_ids" that keep documents apart. Raises ArgumentError as `Pieces` does.
    """
    return shuffled(Pieces(tokens, length, end), batch, seed)


def shuffled(source: Any, batch: int, seed: int) -> Any:
    """Returns such an iterator over the rows of `source`: `Pieces`, or `Rows` of examples."""
    grain = needed("grain")
    # as often as nobody lives to see; grain's own "without end" overflows where a batch is one piece
    rounds = (1 << 62) // len(source)
    drawn = grain.MapDataset.source(source).seed(seed).shuffle().repeat(rounds).batch(batch)
    # a batch is a few slices of memory: threads would only cost
    return iter(drawn.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
