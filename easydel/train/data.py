"""Text to batches: documents joined by their ends of sequence into one row of tokens, cut into pieces of equal length.

That is packing in its plainest form. A piece may hold the end of one document and the beginning of the next, and its
tokens see all that is before them in the piece: there is no mask between documents, only the token that ends each.
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
    """Of a .jsonl file the "text" of each line; any other file is one document, in UTF-8."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot be read: {error}", file=file) from None
    if file.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
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

    Raises ArgumentError if there are not enough for one.
    """

    tokens: np.ndarray
    length: int

    def __post_init__(self) -> None:
        if not len(self):
            raise ArgumentError(f"the text has {len(self.tokens)} tokens, not enough for one piece of {self.length}")

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.tokens[index * self.length : (index + 1) * self.length]}


def batches(tokens: np.ndarray, length: int, batch: int, seed: int) -> Any:
    """An endless iterator of {"input_ids": [batch, length]}, shuffled anew each time around; grain's, so that
    `get_state` and `set_state` say and decide where it is. ArgumentError if the tokens make no piece."""
    pieces = Pieces(tokens, length)
    grain = needed("grain")
    shuffled = grain.MapDataset.source(pieces).seed(seed).shuffle().repeat().batch(batch)
    # a batch is a few slices of memory: threads would only cost
    return iter(shuffled.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
