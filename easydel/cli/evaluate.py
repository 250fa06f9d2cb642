"""`easydel eval`: the loss of a model on chats or on a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from easydel.cli.distributed import Processes
from easydel.cli.examples import read_examples, told
from easydel.cli.models import load_model, located
from easydel.cli.options import Adapter, Hub, Json, Languages, Loading, Model
from easydel.cli.tables import print_facts


def evaluate(
    model: Model,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Chats or texts, as for train."),
    ],
    loading: Loading,
    hub: Hub,
    languages: Languages,
    processes: Processes,
    adapter: Adapter = None,
    batch: Annotated[int, typer.Option(help="Sequences at a time.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens in a sequence; longer chats are cut off.")] = 512,
    separate_documents: Annotated[
        bool, typer.Option("--separate-documents", help="Tokens of a text see their own document only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the mean loss of FILE's tokens (of chats: the assistant's), in nats, and the perplexity, e to the loss.

    A text is cut into pieces of --length that overlap by one token: each token but the first is predicted once, from
    those before it in its piece.
    """
    from easydel.errors import ArgumentError
    from easydel.train import evaluator, measured
    from easydel.train.rows import takes_segments

    if length < 2:
        raise ArgumentError(f"--length {length}: expected at least 2")
    files = located(model, hub, adapter)
    examples = read_examples(
        files.tokenizer, file, separate=separate_documents, languages=languages, follow_links=hub.follow_links
    )
    loaded = load_model(files.path, loading, **files.arguments)
    longest = loaded.record.longest
    if longest is not None and length > longest:
        raise ArgumentError(f"--length {length} is longer than the model's {longest} positions")
    packing = isinstance(examples.encoded, list) and takes_segments(loaded)
    rows = measured(examples.encoded, length, packing=packing, document_end=examples.document_end)
    print(told(rows), file=sys.stderr)
    found = evaluator(loaded, rows, min(batch, len(rows)))(loaded.params)
    facts = {"loss": found.loss, "perplexity": found.perplexity, "tokens": found.tokens}
    if as_json:
        print(json.dumps(facts))
    else:
        print_facts({**facts, "loss": f"{found.loss:.4f}", "perplexity": f"{found.perplexity:.4f}"})
