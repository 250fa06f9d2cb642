"""Chat templates: Jinja programs that come with a checkpoint, run only when asked for, and in `renderer.py`."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from easydel.errors import ArgumentError, ConfigError

RENDERER = str(Path(__file__).with_name("renderer.py"))
LENGTH_BYTES = 8
WAIT_SECONDS = 60  # others may keep the processor busy: the renderer's own limits count its time only
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "LC_TIME")  # no variable that may hold a token


@dataclass(frozen=True)
class Template:
    """The text of a template, and its source."""

    text: str
    source: str

    @property
    def marks(self) -> bool:
        """Whether it says what the assistant writes, by generation blocks."""
        return re.search(r"\{%[-+]?\s*generation\b", self.text) is not None

    @classmethod
    def choose(cls, templates: Mapping[str, str], wanted: str | None, source: str, *, tools: bool) -> Template:
        """Returns the template called `wanted`, or `wanted` itself; by default the one for tools, or "default"."""
        if wanted is not None:
            if wanted not in templates and "{" not in wanted:  # no template, but the name of one
                known = ", ".join(sorted(templates)) or "none"
                raise ArgumentError(f"there is no chat template called {wanted[:100]!r}", hint=f"there are: {known}")
            return cls(templates.get(wanted, wanted), source)
        for name in ("tool_use", "default") if tools else ("default",):
            if name in templates:
                return cls(templates[name], source)
        has = f"only chat templates called {', '.join(sorted(templates))}" if templates else "no chat template"
        raise ConfigError(f"has {has}", file=source or None, hint="pass one as template=, or encode plain text")


def render(template: Template, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """Returns the text of a chat; keys of messages whose value is None count as absent."""
    return _answer(template, messages, variables)["text"]


def render_marked(
    template: Template, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of a chat, and the [first, end) characters that the template's generation blocks wrote."""
    answer = _answer(template, messages, variables, spans=True)
    return answer["text"], [(first, end) for first, end in answer["spans"]]


def _answer(
    template: Template, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, spans: bool = False
) -> dict[str, Any]:
    if not messages:
        raise ArgumentError("a chat needs at least one message")
    if not all(isinstance(message, Mapping) for message in messages):
        raise ArgumentError("a chat is a sequence of messages, each a dict", hint="several chats: call it for each")
    present = [{key: value for key, value in message.items() if value is not None} for message in messages]
    given = _plain({"template": template.text, "variables": {**variables, "messages": present}, "spans": spans})
    answer = _renderer(os.getpid()).ask(given)
    if "refused" in answer:
        raise ArgumentError(f"the chat template does not take these messages: {answer['refused']}")
    if "failed" in answer:
        problem = f"the chat template fails: {answer['failed']}"
        raise ConfigError(problem, file=template.source or None, hint="pass another one as template=")
    return answer


def _plain(values: dict[str, Any]) -> bytes:
    """Returns JSON of `values`, so that a template gets no object with methods that could do harm."""
    try:
        return json.dumps(values).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"messages and tools must be made of dicts, lists, strings and numbers: {error}") from error


class Renderer:
    """The process that renders templates: started for the first template, and again if the system ended it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes) -> dict[str, Any]:
        """Returns the process's answer, as `renderer.answer` makes it, or a failure if it takes too long."""
        with self.lock:
            process = self._started()
            late = threading.Timer(WAIT_SECONDS, process.kill)
            late.start()
            try:
                answer = _exchange(process, request)
            finally:
                late.cancel()
            if answer is None:
                self.close()
            return answer or {"failed": "it runs for too long, or takes too much memory, and was ended"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            path = [place for place in sys.path if place]  # without the current directory, which may be a stranger's
            start = f"import sys, runpy; sys.path[:] = {path!r}; runpy.run_path({RENDERER!r}, run_name='__main__')"
            pipe = subprocess.PIPE
            command = [sys.executable, "-I", "-c", start]
            try:
                self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=known)
            except OSError as error:
                raise ConfigError(f"the chat template needs a process of its own: {error}") from error
        return self.process

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any] | None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(len(request).to_bytes(LENGTH_BYTES, "little") + request)
        process.stdin.flush()
        answer = process.stdout.read(int.from_bytes(process.stdout.read(LENGTH_BYTES), "little"))
        return json.loads(answer) if answer else None
    except (OSError, ValueError):  # it ended in the middle
        return None


@cache
def _renderer(pid: int) -> Renderer:
    """Returns the renderer of this process: a child of a fork needs its own."""
    renderer = Renderer()
    atexit.register(renderer.close)
    return renderer
