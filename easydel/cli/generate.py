"""`easydel generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from easydel.cli.models import load_model, local_files
from easydel.cli.options import Hub, Loading, ModelOption, Sampling

if TYPE_CHECKING:
    from easydel.tokenizer import Tokenizer


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads stdin.")],
    model: ModelOption,
    sampling: Sampling,
    loading: Loading,
    hub: Hub,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template. Default: if the tokenizer has one."),
    ] = None,
) -> None:
    """Print a model's answer to PROMPT while it is generated.

    The model is split over all devices, or those of --mesh; a table on stderr shows the placement.
    """
    arguments = sampling.arguments()
    text = sys.stdin.read() if prompt == "-" else prompt
    path = local_files(model, hub)
    from easydel.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    ids = prompt_ids(tokenizer, text, chat)
    from easydel.cli.streaming import answer, compiled_for

    loaded = load_model(path, loading, while_loading=compiled_for(ids, arguments))
    answer(loaded, tokenizer, ids, arguments)
    print()


def prompt_ids(tokenizer: Tokenizer, text: str, chat: bool | None) -> list[int]:
    """Returns the ids of `text`, as a chat's first message if `chat`, or if that is None and there is a template."""
    if bool(tokenizer.templates) if chat is None else chat:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    return tokenizer.encode(text)
