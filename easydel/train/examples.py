"""From whatever holds examples to their tokens: files, lists, `datasets` objects, iterables of records or token ids."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from easydel.errors import ArgumentError, EasyDeLError, listed
from easydel.tokenizer import Tokenizer
from easydel.train.chat import chat_tokens, completion_tokens
from easydel.train.data import packed
from easydel.train.pairs import pair_tokens
from easydel.train.reading import Found, records
from easydel.train.shapes import Completion, Conversation, Pair, Shape, Text, Tokens, parsed

# One row of tokens that texts are joined into, or examples that stay apart.
Encoded = np.ndarray | list[Tokens]
MANY = 20  # problems after which reading stops
logger = logging.getLogger(__name__)


def encoded(source: Any, tokenizer: Tokenizer | None = None) -> Encoded:
    """Returns the tokens of `source`.

    It is a file's path, or an iterable of examples: dicts such as {"messages": [...]}, {"prompt": ..., "completion":
    ...}, {"instruction": ..., "output": ...}, {"conversations": [...]}, {"text": ...} or {"input_ids": [...]}, or
    {"input": ..., "target": ...} for an encoder-decoder, or texts, or sequences of token ids. Texts are joined into one
    row, each with the tokenizer's end of sequence after it; an array or a list of token ids is such a row already. All
    else becomes a list of examples. `tokenizer` is for what is no token ids. Raises ArgumentError that lists the
    examples that cannot be used.
    """
    if isinstance(source, list) and source and isinstance(source[0], Tokens):
        return source
    if (row := _row(source)) is not None:
        return row
    file = source if isinstance(source, str | PathLike) else None
    return _tokens(list(_parsed(_found(source), file)), tokenizer, file)


def _row(source: Any) -> np.ndarray | None:
    """Returns `source` as one row of token ids; None if it is none."""
    if isinstance(source, str | PathLike | Mapping):
        return None
    if isinstance(source, Sequence) and not (source and isinstance(source[0], int | np.integer)):
        return None
    array = np.asarray(source) if hasattr(source, "__array__") or isinstance(source, Sequence) else None
    if array is None or array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
        return None
    return array.astype(np.int32)


def _found(source: Any) -> Iterator[Found]:
    if isinstance(source, str | PathLike):
        yield from records(source)
        return
    if isinstance(source, Mapping):
        hint = "pass one of them, or a list of examples"
        raise ArgumentError(f"the examples are a mapping of {', '.join(map(str, source))[:200]}", hint=hint)
    for number, example in enumerate(_rows_of_table(source), 1):
        yield f"example {number}", example


def _rows_of_table(source: Any) -> Iterable[Any]:
    """Returns `source`, or the rows of a table of pandas, polars or pyarrow, whose iterators give columns."""
    if hasattr(source, "iterrows"):
        return source.astype(object).where(source.notna(), None).to_dict("records")
    for name in ("to_dicts", "to_pylist"):
        if hasattr(source, name):
            return getattr(source, name)()
    if not isinstance(source, Iterable):
        kind = type(source).__name__
        raise ArgumentError(f"a {kind} holds no examples", hint="pass a file, or an iterable of dicts or token ids")
    return source


def _parsed(found: Iterable[Found], file: Any) -> Iterator[tuple[str, Shape]]:
    """Yields examples; raises ArgumentError with all that are none."""
    problems = []
    for where, example in found:
        try:
            yield where, parsed(example)
        except ArgumentError as error:
            problems.append(f"{where}: {error}")
            if len(problems) == MANY:
                break
    _refuse(problems, file)


def _tokens(examples: list[tuple[str, Shape]], tokenizer: Tokenizer | None, file: Any) -> Encoded:
    if not examples:
        raise ArgumentError("there are no examples", file=file)
    shapes = [example for _, example in examples]
    if tokenizer is None and not all(isinstance(shape, Tokens) for shape in shapes):
        raise ArgumentError("examples that are no token ids need a tokenizer", hint="tokenizer=load_tokenizer(name)")
    texts = [shape.text for shape in shapes if isinstance(shape, Text)]
    if tokenizer is not None and len(texts) == len(shapes):
        return packed(texts, tokenizer.encode, tokenizer.eos_token_id)
    problems, made = [], []
    for where, shape in examples:
        try:
            made += _of_shape(shape, tokenizer)
        except EasyDeLError as error:
            problems.append(f"{where}: {error}")
            if len(problems) == MANY:
                break
    _refuse(problems, file)
    kinds = Counter(type(shape).__name__.lower() for shape in shapes)
    logger.info("%s", ", ".join(f"{count:,} x {kind}" for kind, count in kinds.items()))
    return made


def _of_shape(shape: Shape, tokenizer: Any) -> list[Tokens]:
    if isinstance(shape, Tokens):
        return [shape]
    if isinstance(shape, Conversation):
        return chat_tokens(shape, tokenizer)
    if isinstance(shape, Pair):
        return [pair_tokens(shape, tokenizer)]
    if isinstance(shape, Completion):
        return [completion_tokens(shape, tokenizer)]
    ids = packed([shape.text], tokenizer.encode, tokenizer.eos_token_id)
    return [Tokens(ids, ids)]


def _refuse(problems: list[str], file: Any) -> None:
    if len(problems) == 1:
        raise ArgumentError(problems[0], file=file)
    if problems:
        more = " (and perhaps more)" if len(problems) == MANY else ""
        raise ArgumentError(f"has {len(problems)} examples that cannot be used{more}:{listed(problems)}", file=file)


def held_out(examples: Encoded, share: float, seed: int) -> tuple[Encoded, Encoded]:
    """Returns what is left to train on, and `share` of the examples, drawn by `seed`, or of a text, from its end."""
    if not 0 < share < 1:
        raise ArgumentError(f"a share of {share} cannot be held out for evaluation", hint="expected one as 0.1")
    count = max(1, round(share * len(examples)))
    if count >= len(examples):
        raise ArgumentError(f"nothing is left to train on when {count} of {len(examples)} are held out")
    if isinstance(examples, np.ndarray):
        return examples[:-count], examples[-count:]
    drawn = set(np.random.default_rng(seed).permutation(len(examples))[:count].tolist())
    kept = [example for number, example in enumerate(examples) if number not in drawn]
    return kept, [examples[number] for number in sorted(drawn)]
