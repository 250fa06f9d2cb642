"""A separate process that renders chat templates: `chat.py` starts this file, which imports nothing of ours.

A template is a program that a stranger wrote. Jinja's sandbox keeps it from Python's objects, but not from running for
ever, nor from filling the memory with one multiplication. Limits on processor time and memory do: the system then ends
this process, and nothing else. Requests and answers are JSON, each after its length in 8 bytes.
"""

from __future__ import annotations

import json
import math
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


class Refusal(jinja2.TemplateError):
    """Raised by a template that does not take these messages."""


class Generation(Extension):
    """{% generation %} marks the assistant's text, for training; it does not change the text."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def main() -> None:
    """Answers requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := receive(requests)) is not None:
        _limit()
        send(answers, answer(request["template"], request["variables"]))


def receive(stream: BinaryIO) -> Any:
    """Returns the next message; None if the other side has left."""
    size = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    text = stream.read(size)
    return json.loads(text) if text and len(text) == size else None


def send(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    text = json.dumps(message).encode()
    stream.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    stream.flush()


def answer(template: str, variables: Mapping[str, Any]) -> dict[str, str]:
    """Returns the "text", the reason why the template "refused" the messages, or the error with which it "failed"."""
    try:
        text = _compiled(template).render(variables)
        return {"text": text} if len(text) <= MAX_TEXT else {"failed": f"it makes {len(text)} characters"}
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


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
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
