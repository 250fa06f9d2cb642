"""Retries within bounds: their number, the waits between them, and limits on the retries of huggingface_hub itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from time import sleep
from typing import Any, TypeVar

from huggingface_hub import get_session, hf_raise_for_status

from easydel.hub.explain import Transient, endpoint, explaining, stranger

ATTEMPTS = 4
LONGEST_WAIT = 300.0  # seconds: the Hub counts requests in windows of five minutes

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass
class _Attempt:
    repo: str
    revision: str | None
    asked: set[str] = field(default_factory=set)


_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)
_installing = threading.Lock()


def persist(action: Callable[[], _T], attempts: int = ATTEMPTS) -> _T:
    """Returns the result of `action`, tried up to `attempts` times while it raises `Transient`.

    Waits 1, 2, 4, ... seconds between tries, or as long as the Hub asks if that is longer; gives up at once if the Hub
    asks for more than `LONGEST_WAIT`.
    """
    tried = 0
    while True:
        tried += 1
        try:
            return action()
        except Transient as error:
            wait = max(error.wait, 2.0 ** (tried - 1))
            if wait > LONGEST_WAIT:
                problem = f"{error.problem}, and asks to be left alone for {wait:.0f} seconds"
                raise Transient(problem, file=error.file, hint=error.hint) from error
            if tried >= attempts:
                problem = error.problem + (f" (tried {tried} times)" if tried > 1 else "")
                raise Transient(problem, file=error.file, hint=error.hint) from error
            _log.warning("%s: %s; trying again in %.0f s", error.file, error.problem, wait)
        sleep(wait)


@contextmanager
def attempt(repo: str, revision: str | None) -> Iterator[None]:
    """Makes requests of huggingface_hub on this thread fail as a `HubError` at the first failure, not the sixth.

    By itself it would wait for however long a server asks, and ask a silent one for the same file for six minutes.
    It still resumes a download that breaks or stalls in the middle.
    """
    _install()
    before = _attempt.set(_Attempt(repo, revision))
    try:
        with explaining(repo, revision):
            yield
    finally:
        _attempt.reset(before)


def _install() -> None:
    """Hooks into huggingface_hub's shared HTTP client. Requests on threads without an `attempt` are unaffected."""
    with _installing:
        client = get_session()
        hooks = client.event_hooks
        if _check_answer not in hooks["response"]:
            request, response = [*hooks["request"], _check_request], [*hooks["response"], _check_answer]
            client.event_hooks = {"request": request, "response": response}


def _check_request(request: Any) -> None:
    current = _attempt.get()
    if current is None or request.method != "HEAD":
        return
    url = str(request.url)
    if url in current.asked:  # this URL already failed: a retry costs six more one-minute attempts
        hint = "check the connection, or pass a local directory"
        raise Transient(f"the Hub at {endpoint()} does not answer any more", file=current.repo, hint=hint)
    current.asked.add(url)


def _check_answer(response: Any) -> None:
    current = _attempt.get()
    if current is None:
        return
    status = response.status_code
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.REQUEST_TIMEOUT,
    ):
        with explaining(current.repo, current.revision):
            hf_raise_for_status(response)
    if status == HTTPStatus.OK and "text/html" in response.headers.get("content-type", "").lower():
        raise stranger(current.repo, f"{response.url.scheme}://{response.url.netloc.decode()}")
