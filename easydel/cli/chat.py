"""`easydel chat`: a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.cli.models import load_model, located
from easydel.cli.options import Adapter, Hub, Loading, ModelOption, Sampling
from easydel.errors import EasyDeLError

if TYPE_CHECKING:
    from easydel.model import BaseNNXModule
    from easydel.tokenizer import Tokenizer

QUIT = ("/quit", "/exit")
CLEAR, HELP = "/clear", "/help"
HELP_TEXT = f"""{CLEAR} forgets what was said, {QUIT[0]} ends.
Ctrl-C stops an answer; at the prompt it ends, as Ctrl-D does. Pasted lines are one message."""
PASTED_SECONDS = 0.05  # lines that follow within this time were not typed
Messages = list[dict[str, str]]


def chat(
    model: ModelOption,
    sampling: Sampling,
    loading: Loading,
    hub: Hub,
    adapter: Adapter = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
) -> None:
    """Talk to a model, which remembers the conversation. /help lists what one can do, /clear forgets it, /quit ends.

    Ctrl-C stops an answer. From a pipe, each line is a message.
    """
    arguments = sampling.arguments()
    files = located(model, hub, adapter)
    from easydel.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(files.tokenizer, follow_links=hub.follow_links)
    if "stop_strings" in arguments:
        arguments["tokenizer"] = tokenizer
    beginning: Messages = [{"role": "system", "content": system}] if system else []
    tokenizer.apply_chat_template([*beginning, {"role": "user", "content": "Hello"}])  # fails before the weights load
    loaded = load_model(files.path, loading, **files.arguments)
    converse(loaded, tokenizer, beginning, arguments)


def converse(model: BaseNNXModule, tokenizer: Tokenizer, beginning: Messages, arguments: dict[str, Any]) -> None:
    """Answers each message of stdin until /quit or the end; earlier messages are not computed again."""
    from easydel.generate import PromptCache

    said = list(beginning)
    if not model.record.has_encoder:
        arguments = {**arguments, "prompt_cache": PromptCache()}
    for line in _messages():
        if line in QUIT:
            return
        if line == HELP:
            print(HELP_TEXT, file=sys.stderr)
        elif line == CLEAR:
            said = list(beginning)
            print("forgotten", file=sys.stderr)
        elif line:
            said = _turn(model, tokenizer, [*said, {"role": "user", "content": line}], arguments)


def _turn(model: BaseNNXModule, tokenizer: Tokenizer, said: Messages, arguments: dict[str, Any]) -> Messages:
    """Returns the conversation after the model's answer; without the question if the answer failed interactively."""
    from easydel.cli.streaming import answer

    try:
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True)
        text, _ = answer(model, tokenizer, ids, arguments)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        print("\n(stopped; the question and this answer are forgotten)", file=sys.stderr)
        return said[:-1]
    except EasyDeLError as error:
        if not sys.stdin.isatty():
            raise
        print(f"easydel: {error}\n({CLEAR} begins anew)", file=sys.stderr)
        return said[:-1]
    print(flush=True)
    return [*said, {"role": "assistant", "content": text.strip()}]


def _messages() -> Iterator[str]:
    """Yields messages that are typed or pasted, or lines from a pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401 (gives input() a history and editing)

    print(f"{CLEAR} forgets what was said, {QUIT[0]} ends, {HELP} says more", file=sys.stderr)
    while True:
        try:
            lines = [input("> ")]
            while _pasted():
                lines.append(input())
        except EOFError:
            print()
            return
        yield "\n".join(lines).strip()


def _pasted() -> bool:
    """Whether more lines wait on the terminal: nobody types that fast."""
    import select

    return bool(select.select([sys.stdin], [], [], PASTED_SECONDS)[0])
