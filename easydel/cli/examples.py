"""Reads a file of examples for the commands that train and evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from easydel.cli.options import Languages
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.train.examples import Encoded
    from easydel.train.rows import Source


@dataclass(frozen=True)
class Examples:
    """The tokens of a file, and the token that separates its documents if they are separate."""

    encoded: Encoded
    document_end: int | None


def read_examples(
    model: Path, file: Path, *, separate: bool, languages: Languages, follow_links: bool = False
) -> Examples:
    """Returns the examples in `file` as tokens of the model at `model`."""
    from easydel.tokenizer import load_tokenizer
    from easydel.train import encoded

    tokenizer = load_tokenizer(
        model, follow_links=follow_links, src_lang=languages.src_lang, tgt_lang=languages.tgt_lang
    )
    end = tokenizer.eos_token_id
    if end is None and separate:
        raise ArgumentError("--separate-documents needs a tokenizer with an end of sequence", file=model)
    return Examples(encoded(file, tokenizer), end if separate else None)


def told(source: Source) -> str:
    """Returns a line for people about what there is to learn."""
    from easydel.train.rows import Pairs, Rows

    if isinstance(source, Pairs):
        inputs, outputs = source.input_ids.shape[1], source.labels.shape[1]
        sizes = f"inputs of up to {inputs} tokens, targets of up to {outputs}"
        return f"{len(source):,} pairs, {sizes}, {source.learned:,} tokens to learn"
    if isinstance(source, Rows):
        rows, length = source.input_ids.shape
        return f"{source.examples:,} examples in {rows:,} rows of {length}, {source.learned:,} tokens to learn"
    return f"{len(source.tokens):,} tokens in {len(source):,} pieces of {source.length}"
