"""Pairs for encoder-decoders: what the encoder reads, and what the decoder learns to write."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from easydel.errors import ArgumentError
from easydel.tokenizer import Tokenizer
from easydel.train.shapes import Pair, Tokens
from easydel.train.summed import IGNORED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairTokens(Tokens):
    """Token ids of an input, and `labels`, of another length: those of its target."""


@dataclass(frozen=True)
class Pairs:
    """A row for each pair: `input_ids` and their `attention_mask` [rows, S], `labels` [rows, T]. A source for grain.

    S and T are the lengths of the longest input and target; the rest of a row is padding.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        names = ("input_ids", "attention_mask", "labels")
        return {name: getattr(self, name)[index] for name in names}

    @property
    def learned(self) -> int:
        """The number of tokens that have a loss."""
        return int((self.labels != IGNORED).sum())


def pair_tokens(pair: Pair, tokenizer: Tokenizer) -> PairTokens:
    """Returns the ids of a pair. A target gets an end of sequence, whether the tokenizer puts one there or not."""
    labels, end = tokenizer.encode_target(pair.target), tokenizer.eos_token_id
    if end is not None and end not in labels:
        labels = [*labels, end]
    found = PairTokens(np.asarray(tokenizer.encode(pair.input), np.int32), np.asarray(labels, np.int32))
    if not len(found.input_ids) or not len(found.labels):
        raise ArgumentError("has an input or a target without tokens")
    return found


def paired(examples: list[Tokens], length: int) -> Pairs:
    """Returns the rows of pairs. Inputs and targets longer than `length` lose tokens before their last one.

    The last one is an end or a language. A warning tells how many are cut. Raises ArgumentError if some are no pairs.
    """
    if others := sum(not isinstance(example, PairTokens) for example in examples):
        raise ArgumentError(f"{others} of {len(examples)} examples are no pairs of an input and a target")
    long = sum(max(len(example.input_ids), len(example.labels)) > length for example in examples)
    if long:
        logger.warning("%s of %s pairs have more than %s tokens, and are cut off", long, len(examples), length)
    inputs, targets = (
        [_cut(ids, length) for ids in column]
        for column in ([example.input_ids for example in examples], [example.labels for example in examples])
    )
    ones = [np.ones_like(ids) for ids in inputs]
    return Pairs(_filled(inputs, 0), _filled(ones, 0), _filled(targets, IGNORED))


def _cut(ids: np.ndarray, length: int) -> np.ndarray:
    return ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1])


def _filled(rows: list[np.ndarray], padding: int) -> np.ndarray:
    filled = np.full((len(rows), max(map(len, rows))), padding, np.int32)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)] = ids
    return filled
