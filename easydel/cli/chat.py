"""`easydel chat`: a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.cli.models import load_model, local_files
from easydel.cli.options import Hub, Loading, ModelOption, Sampling
from easydel.errors import EasyDeLError

if TYPE_CHECKING:
    from easydel.model import BaseNNXModule
    from easydel.tokenizer import Tokenizer

QUIT = ("/quit", "/exit")
CLEAR = "/clear"
Messages = list[dict[str, str]]


def chat(
    model: ModelOption,
    sampling: Sampling,
    loading: Loading,
    hub: Hub,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
) -> None:
    """Talk to a model, which remembers the conversation. /clear forgets it, /quit ends.

    From a pipe, each line is a message.
    """
    arguments = sampling.arguments()
    path = local_files(model, hub)
    from easydel.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    beginning: Messages = [{"role": "system", "content": system}] if system else []
    tokenizer.apply_chat_template([*beginning, {"role": "user", "content": "Hello"}])  # fails before the weights load
    loaded = load_model(path, loading)
    converse(loaded, tokenizer, beginning, arguments)


def converse(model: BaseNNXModule, tokenizer: Tokenizer, beginning: Messages, arguments: dict[str, Any]) -> None:
    """Answers each line of stdin until /quit or the end; earlier messages are not computed again."""
    from easydel.generate import PromptCache

    said = list(beginning)
    if not model.record.has_encoder:
        arguments = {**arguments, "prompt_cache": PromptCache()}
    for line in _lines():
        if line in QUIT:
            return
        if line == CLEAR:
            said = list(beginning)
            print("forgotten", file=sys.stderr)
        elif line:
            said = _turn(model, tokenizer, [*said, {"role": "user", "content": line}], arguments)


def _turn(model: BaseNNXModule, tokenizer: Tokenizer, said: Messages, arguments: dict[str, Any]) -> Messages:
    """Returns the conversation after the model's answer; without the question if the answer failed interactively."""
    from easydel.cli.streaming import answer

    try:
        text = answer(model, tokenizer, tokenizer.apply_chat_template(said, add_generation_prompt=True), arguments)
    except EasyDeLError as error:
        if not sys.stdin.isatty():
            raise
        print(f"easydel: {error}\n({CLEAR} begins anew)", file=sys.stderr)
        return said[:-1]
    print(flush=True)
    return [*said, {"role": "assistant", "content": text.strip()}]


def _lines() -> Iterator[str]:
    """Yields lines that are typed, or come from a pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401 (gives input() a history and editing)

    print(f"{CLEAR} forgets what was said, /quit ends", file=sys.stderr)
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
