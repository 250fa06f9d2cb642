"""Chat templates: Jinja programs that come with a checkpoint, run in a sandbox and only when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from easydel.errors import ArgumentError, ConfigError


@dataclass(frozen=True)
class Template:
    """The text of a template, and whose it is."""

    text: str
    source: str

    @classmethod
    def choose(cls, templates: Mapping[str, str], wanted: str | None, source: str, *, tools: bool) -> Template:
        """The template called `wanted`, or `wanted` itself; without it the one for tools, or the default."""
        if wanted is not None:
            return cls(templates.get(wanted, wanted), source)
        for name in ("tool_use", "default") if tools else ("default",):
            if name in templates:
                return cls(templates[name], source)
        has = f"only chat templates called {', '.join(sorted(templates))}" if templates else "no chat template"
        raise ConfigError(f"has {has}", file=source or None, hint="pass one as template=, or encode plain text")


class Refusal(jinja2.TemplateError):
    """Raised by a template that does not take these messages."""


class Generation(Extension):
    """{% generation %} marks what the assistant says, for training; it does not change the text."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def render(template: Template, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a chat; keys of messages whose value is None count as absent."""
    if not messages:
        raise ArgumentError("a chat needs at least one message")
    present = [{key: value for key, value in message.items() if value is not None} for message in messages]
    values = _plain({**variables, "messages": present})
    try:
        return _compiled(template.text).render(values)
    except Refusal as error:
        raise ArgumentError(f"the chat template does not take these messages: {error}") from error
    except Exception as error:  # whatever the template's own program does wrong
        problem = f"the chat template fails: {type(error).__name__}: {error}"
        raise ConfigError(problem, file=template.source or None, hint="pass another one as template=") from error


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy in JSON's types only, so that a template gets no object with methods that could do harm."""
    try:
        return json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"messages and tools must be made of dicts, lists, strings and numbers: {error}") from error


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda format: datetime.now().strftime(format)}
    return environment.from_string(text)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as Python writes it; Jinja's own filter escapes what would be HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise Refusal(message)
