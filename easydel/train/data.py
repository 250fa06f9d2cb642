"""Text to batches: documents joined by their ends of sequence into one row of tokens, cut into pieces of equal length.

That is packing in its plainest form. A piece may hold the end of one document and the beginning of the next. Its tokens
see all that is before them in the piece, or, where the token that ends documents is given, their own document only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from easydel.errors import ArgumentError


def needed(package: str) -> Any:
    """The package; ArgumentError says how to install it. They are optional, and slow to import."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise ArgumentError(f"training needs {error.name}", hint='pip install "easydel[train]"') from None


def documents(file: Path) -> Iterator[str]:
    """Of a .jsonl file the "text" of each line; any other file is one document. Both in UTF-8."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # many editors on Windows begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot be read: {error}", file=file) from None
    if file.suffix != ".jsonl":
        yield text
        return
    # not splitlines: JSON strings may hold U+2028 and the other characters at which that would cut them
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        if not isinstance(found, str):
            raise ArgumentError(f'line {number} is no JSON object with a "text"', file=file)
        yield found


def packed(texts: Iterable[str], encode: Callable[[str], Sequence[int]], end: int | None) -> np.ndarray:
    """The tokens of all `texts`, int32, each text with the token `end` after it (None: no such token)."""
    rows = []
    for text in texts:
        ids = list(encode(text))
        rows.append(np.asarray(ids if end is None or ids[-1:] == [end] else [*ids, end], np.int32))
    return np.concatenate(rows) if rows else np.zeros(0, np.int32)


@dataclass(frozen=True)
class Pieces:
    """`tokens` in pieces of `length`; what is left at the end is not used. A source for grain.

    With `end`, a piece has `segment_ids`: how many of these tokens come before each token. Raises ArgumentError if
    there are not enough tokens for one piece, or `end` is not among them.
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
    """An endless iterator of {"input_ids": [batch, length]}, shuffled anew each time around; grain's, so that
    `get_state` and `set_state` say and decide where it is. With `end`, the token that ends documents, there are
    "segment_ids" that keep them apart. Raises as `Pieces`."""
    pieces = Pieces(tokens, length, end)
    grain = needed("grain")
    # as often as nobody lives to see; grain's own "without end" overflows where a batch is one piece
    rounds = (1 << 62) // len(pieces)
    shuffled = grain.MapDataset.source(pieces).seed(seed).shuffle().repeat(rounds).batch(batch)
    # a batch is a few slices of memory: threads would only cost
    return iter(shuffled.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
