"""Rows of equal length, made of examples: several in a row as segments that do not see each other, or one in each."""

from __future__ import annotations

import heapq
import logging
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.module import LanguageModel
from easydel.train.data import Pieces
from easydel.train.examples import Encoded
from easydel.train.pairs import Pairs, PairTokens, paired
from easydel.train.shapes import Tokens
from easydel.train.summed import IGNORED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Rows of `input_ids` with `labels`, and `segment_ids` if a row may hold several examples. All are [rows, length].

    What is left of a row is padding: it has no labels, and is a segment of its own. A source for grain.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray | None
    examples: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        found = {"input_ids": self.input_ids[index], "labels": self.labels[index]}
        return found if self.segment_ids is None else found | {"segment_ids": self.segment_ids[index]}

    @property
    def learned(self) -> int:
        """The number of tokens that have a loss: labels whose token has one before it in its example."""
        counts = self.labels[:, 1:] != IGNORED
        if self.segment_ids is not None:
            counts &= self.segment_ids[:, 1:] == self.segment_ids[:, :-1]
        return int(counts.sum())


Source = Pieces | Rows | Pairs


def check_source(model: LanguageModel, source: Source) -> None:
    """Raises UnsupportedModelError for pairs unless `model` is an encoder-decoder, which takes nothing else."""
    kind, pairs = model.config.get("model_type"), isinstance(source, Pairs)
    if model.record.has_encoder and not pairs:
        hint = 'pass examples as {"input": ..., "target": ...}'
        raise UnsupportedModelError(f"{kind} is an encoder-decoder: it learns pairs, not texts or chats", hint=hint)
    if pairs and not model.record.has_encoder:
        hint = 'pass examples as {"prompt": ..., "completion": ...}'
        raise UnsupportedModelError(f"{kind} is no encoder-decoder: it learns no pairs of input and target", hint=hint)


def in_rows(examples: list[Tokens], length: int, *, packing: bool = True) -> Rows | Pairs:
    """Returns rows of `length` tokens; of pairs, a row for each. Longer examples are cut off, with a warning.

    With `packing`, the longest go first, each into the fullest row that has room: best-fit decreasing, which leaves
    little padding and cuts no example (Ding et al. 2024, arXiv:2404.10830).
    """
    if any(isinstance(example, PairTokens) for example in examples):
        return paired(examples, length)
    kept = _cut(examples, length)
    order = sorted(range(len(kept)), key=lambda number: -len(kept[number].input_ids))
    groups = _best_fit([len(kept[number].input_ids) for number in order], length) if packing else [[n] for n in order]
    return _filled([[kept[order[place]] for place in group] for group in groups], length, packing)


def arranged(
    examples: Encoded | Source, length: int, *, packing: bool = True, document_end: int | None = None
) -> Source:
    """Returns the rows to train on: `Pieces` of a text's one row of tokens, `Rows` of examples, `Pairs`."""
    if isinstance(examples, Source):
        return examples
    if isinstance(examples, np.ndarray):
        return Pieces(examples, length, document_end)
    return in_rows(examples, length, packing=packing)


def measured(
    examples: Encoded | Source, length: int, *, packing: bool = True, document_end: int | None = None
) -> Rows | Pairs:
    """Returns the rows to evaluate: as `arranged`, but nothing of a text is left out.

    Its pieces overlap by one token, so that each token but the first is predicted, once.
    """
    if isinstance(examples, Rows | Pairs):
        return examples
    if isinstance(examples, list):
        return in_rows(examples, length, packing=packing)
    tokens, end = (examples.tokens, examples.end) if isinstance(examples, Pieces) else (examples, document_end)
    if len(tokens) < 2:
        raise ArgumentError(f"the text has {len(tokens)} tokens: nothing to predict")
    starts = range(0, len(tokens) - 1, length - 1)
    pieces = [Tokens(tokens[start : start + length], tokens[start : start + length]) for start in starts]
    made = _filled([[piece] for piece in pieces], length, packing=False)
    if end is None:
        return made
    ends = np.equal(made.input_ids, end)
    return replace(made, segment_ids=np.cumsum(ends, axis=1, dtype=np.int32) - ends)


def takes_segments(model: LanguageModel) -> bool:
    """Whether the model can keep several examples in a row apart, which recurrent ones cannot. Only traces it."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    row = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    own = model.bound(shapes)
    try:
        jax.eval_shape(lambda params, ids: own.bound(params).model(input_ids=ids, segment_ids=ids)[0], shapes, row)
    except (UnsupportedModelError, ArgumentError):
        return False
    return True


def _cut(examples: list[Tokens], length: int) -> list[Tokens]:
    """Returns the examples cut to `length`, without those that nothing is learned from; says what is lost."""
    long = [example for example in examples if len(example.input_ids) > length]
    short = [Tokens(example.input_ids[:length], example.labels[:length]) for example in examples]
    kept = [example for example in short if (example.labels[1:] != IGNORED).any()]
    if long:
        lost = sum(len(example.input_ids) - length for example in long)
        longest = max(len(example.input_ids) for example in long)
        logger.warning(
            "%s of %s examples are longer than %s tokens (the longest: %s) and cut off: %s tokens are lost",
            *(f"{number:,}" for number in (len(long), len(examples), length, longest, lost)),
        )
    if len(kept) < len(examples):
        logger.warning(
            "%s of %s examples have no token to learn within %s tokens, and are left out",
            *(f"{number:,}" for number in (len(examples) - len(kept), len(examples), length)),
        )
    if not kept:
        raise ArgumentError(f"no example has a token to learn within {length} tokens")
    return kept


def _best_fit(sizes: list[int], length: int) -> list[list[int]]:
    """Puts items of falling `sizes` into groups of at most `length`; returns the places of each group's items."""
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> a heap of groups with that much
    rooms: list[int] = []  # its keys, sorted
    for place, size in enumerate(sizes):
        found = bisect_left(rooms, size)
        if found == len(rooms):
            group, room = len(groups), length
            groups.append([])
        else:
            room = rooms[found]
            group = heapq.heappop(by_room[room])
            if not by_room[room]:
                del by_room[room], rooms[found]
        groups[group].append(place)
        left = room - size
        if left and left not in by_room:
            by_room[left] = []
            rooms.insert(bisect_left(rooms, left), left)
        if left:
            heapq.heappush(by_room[left], group)
    return groups


def _filled(groups: list[list[Tokens]], length: int, packing: bool) -> Rows:
    input_ids = np.zeros((len(groups), length), np.int32)
    labels = np.full((len(groups), length), IGNORED, np.int32)
    segments = np.zeros((len(groups), length), np.int32)
    for row, group in enumerate(groups):
        end = 0
        for number, example in enumerate(group):
            start, end = end, end + len(example.input_ids)
            input_ids[row, start:end], labels[row, start:end] = example.input_ids, example.labels
            segments[row, start:end] = number
        segments[row, end:] = len(group)
    return Rows(input_ids, labels, segments if packing else None, sum(map(len, groups)))
