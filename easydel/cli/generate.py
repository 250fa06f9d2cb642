"""`easydel generate`: a prompt and its answer, or a file of prompts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.cli.distributed import Processes
from easydel.cli.models import load_model, located
from easydel.cli.options import Adapter, Hub, Json, Languages, Loading, ModelOption, Sampling
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.model import BaseNNXModule
    from easydel.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """A prompt's answer, and its cost; the first one's time includes compilation."""

    prompt: str
    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    tokens_per_second: float


def generate(
    model: ModelOption,
    sampling: Sampling,
    loading: Loading,
    hub: Hub,
    languages: Languages,
    processes: Processes,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads stdin.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='A file of prompts, one in each line; or .jsonl, with a "prompt" or "messages" in each.'),
    ] = None,
    adapter: Adapter = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template. Default: if the tokenizer has one."),
    ] = None,
    beams: Annotated[
        int, typer.Option(min=1, help="Follow so many texts at a time, and print the best at the end.")
    ] = 1,
    global_tokens: Annotated[
        int, typer.Option(min=0, help="Let so many first tokens of PROMPT see all others, and be seen by all (LED).")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Print a model's answer to PROMPT while it is generated, or to each of the prompts in a file.

    An encoder-decoder reads PROMPT with its encoder, and its decoder writes the answer. The model is split over all
    devices, or those of --mesh; a table on stderr shows the placement. --json prints an object with text, numbers of
    tokens and time in each line.
    """
    arguments = {**sampling.arguments(), "num_beams": beams, "global_tokens": global_tokens}
    asked = list(_asked(prompt, prompts))
    files = located(model, hub, adapter)
    from easydel.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(
        files.tokenizer, follow_links=hub.follow_links, src_lang=languages.src_lang, tgt_lang=languages.tgt_lang
    )
    if languages.tgt_lang is not None:
        arguments["forced_bos_token_id"] = tokenizer.language_id(languages.tgt_lang)
    if "stop_strings" in arguments:
        arguments["tokenizer"] = tokenizer
    ids = [prompt_ids(tokenizer, one, chat) for one in asked]
    from easydel.cli.streaming import compiled_for

    loaded = load_model(files.path, loading, **files.arguments, while_loading=compiled_for(ids[0], arguments))
    for one, tokens in zip(asked, ids, strict=True):
        answered(loaded, tokenizer, one, tokens, arguments, as_json=as_json)


def answered(
    model: BaseNNXModule, tokenizer: Tokenizer, prompt: Any, ids: list[int], arguments: dict[str, Any], *, as_json: bool
) -> None:
    """Prints an answer: as text while it is made, and its speed on a terminal; or as a line of JSON."""
    from easydel.cli.streaming import answer

    begin = time.perf_counter()
    text, tokens = answer(model, tokenizer, ids, arguments, silent=as_json)
    seconds = time.perf_counter() - begin
    shown = prompt if isinstance(prompt, str) else json.dumps(prompt)
    found = Answer(shown, text, len(ids), tokens, round(seconds, 3), round(tokens / max(seconds, 1e-9), 2))
    if as_json:
        print(json.dumps(asdict(found), ensure_ascii=False), flush=True)
        return
    print(flush=True)
    if sys.stderr.isatty():
        print(f"{tokens} tokens in {seconds:.1f} s, {found.tokens_per_second:.1f} tokens/s", file=sys.stderr)


def _asked(prompt: str | None, prompts: Path | None) -> Iterator[Any]:
    """Yields the prompts: texts, or chats as lists of messages."""
    if (prompt is None) == (prompts is None):
        raise ArgumentError("generate takes a PROMPT, or --prompts FILE", hint="give one of them")
    if prompt is not None:
        # a line ends in a newline that nobody meant as a part of the prompt
        yield sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
        return
    assert prompts is not None
    try:
        lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot be read: {error}", file=prompts) from None
    if not lines:
        raise ArgumentError("holds no prompt", file=prompts)
    for number, line in enumerate(lines, 1):
        yield _of_json(line, prompts, number) if prompts.suffix == ".jsonl" else line


def _of_json(line: str, file: Path, number: int) -> Any:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ArgumentError(f"line {number} is no JSON: {error}", file=file) from None
    found = value.get("prompt", value.get("messages")) if isinstance(value, dict) else value
    if not isinstance(found, str | list):
        raise ArgumentError(f'line {number} has neither "prompt" nor "messages"', file=file)
    return found


def prompt_ids(tokenizer: Tokenizer, prompt: Any, chat: bool | None) -> list[int]:
    """Returns the ids of a text, as a chat's first message if `chat`, or if that is None and there is a template.

    A list of messages is a chat.
    """
    if not isinstance(prompt, str):
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
    if bool(tokenizer.templates) if chat is None else chat:
        return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    return tokenizer.encode(prompt)
