"""A separate process that renders chat templates: `chat.py` starts this file, which imports nothing of ours.

A template is a program that a stranger wrote. Jinja's sandbox keeps it from Python's objects, but not from running for
ever, nor from filling the memory with one multiplication. Limits on processor time and memory do: the system then ends
this process, and nothing else. Requests and answers are JSON, each after its length in 8 bytes.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 1  # of the processor, rounded up to whole ones: real templates take milliseconds
MEMORY = 128 << 20  # bytes in addition to those of Python and Jinja
LENGTH_BYTES = 8
MAX_TEXT = 16 << 20  # characters, far more than any model takes
MAX_MESSAGE = 500  # characters
BEGIN, END = "\ufdd0", "\ufdd1"  # Unicode keeps these for a program's own use: no text has them


class Refusal(jinja2.TemplateError):
    """Raised by a template that does not take these messages."""


class Generation(Extension):
    """{% generation %} marks the assistant's text, for training; it does not change the text."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(self.body(parser), lineno=line)

    def body(self, parser: Parser) -> list[nodes.Node]:
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MarkedGeneration(Generation):
    """As `Generation`, with the marks `BEGIN` and `END` around the text."""

    def body(self, parser: Parser) -> list[nodes.Node]:
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return [begin, *super().body(parser), end]


def main() -> None:
    """Answers requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := receive(requests)) is not None:
        _limit()
        send(answers, answer(request["template"], request["variables"], spans=request["spans"]))


def receive(stream: BinaryIO) -> Any:
    """Returns the next message; None if the other side has left."""
    size = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    text = stream.read(size)
    return json.loads(text) if text and len(text) == size else None


def send(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    text = json.dumps(message).encode()
    stream.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    stream.flush()


def answer(template: str, variables: Mapping[str, Any], *, spans: bool = False) -> dict[str, Any]:
    """Returns the "text", the reason why the template "refused" the messages, or the error with which it "failed".

    With `spans`, also the "spans" of the text that the template's generation blocks wrote: [first, end) in characters.
    """
    try:
        text = _compiled(template).render(variables)
        if len(text) > MAX_TEXT:
            return {"failed": f"it makes {len(text)} characters"}
        if not spans:
            return {"text": text}
        plain, found = _unmarked(_compiled(template, MarkedGeneration).render(variables))
        if plain != text:
            return {"failed": "it changes the text of its generation blocks, so that their places are unknown"}
        return {"text": text, "spans": found}
    except Refusal as error:
        return {"refused": str(error)[:MAX_MESSAGE]}
    except MemoryError:
        return {"failed": f"it takes more than {MEMORY} bytes of memory"}
    except Exception as error:  # any error of the template's own program
        return {"failed": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]}


def _limit() -> None:
    """Makes the system end this process after `SECONDS` from now, and give it no more than `MEMORY`."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + SECONDS, most))
    if sys.platform == "linux":  # other systems do not report their use, or do not limit it
        with open("/proc/self/statm") as sizes:
            used = int(sizes.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, most))


def _unmarked(text: str) -> tuple[str, list[list[int]]]:
    """Returns the text without marks, and where those that have text between them were."""
    parts: list[str] = []
    bounds: list[int] = []
    for part in re.split(f"([{BEGIN}{END}])", text):
        if part in (BEGIN, END):
            bounds.append(sum(map(len, parts)))
        else:
            parts.append(part)
    spans = [list(span) for span in zip(bounds[::2], bounds[1::2], strict=True) if span[0] < span[1]]
    return "".join(parts), spans


@lru_cache(maxsize=16)
def _compiled(text: str, generation: type[Generation] = Generation) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda format: datetime.now().strftime(format)}
    return environment.from_string(text)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Returns JSON as Python writes it; Jinja's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise Refusal(message)


if __name__ == "__main__":
    main()
