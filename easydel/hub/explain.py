"""From errors of huggingface_hub to one line that says what happened, and one that says what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from huggingface_hub import constants, errors
from huggingface_hub.errors import HfHubHTTPError

from easydel.errors import EasyDeLError, HubError
from easydel.hub.local import similar

# The base of all HTTP errors; it comes from another package in each major version of huggingface_hub.
HTTPError = cast(type[Exception], HfHubHTTPError.__bases__[0])
_LOG_IN = "log in with `hf auth login`, or pass token="
_LATER = "load it again later; a download goes on where it stopped"
_SECRET = re.compile(r"hf_\w+|(?<=Bearer )[^\s'\"]+|(?<=//)[^/@\s]+@|(?<=\?)[^\s'\"]+")


class HubUnreachable(HubError):
    """No answer from the Hub, or one that reports a problem of its own: an earlier download may be used instead."""


class Transient(HubUnreachable):
    """A failure that another try may get past; `wait` is the number of seconds that the Hub asked to wait."""

    wait: float = 0


@contextmanager
def explaining(repo: str, revision: str | None) -> Iterator[None]:
    """Converts errors of huggingface_hub to a `HubError` about the repository `repo`."""
    try:
        yield
    except EasyDeLError:
        raise
    except Exception as error:  # it lets through every error of the network, the disk or a strange answer
        raise explained(error, repo, revision) from error


def explained(error: BaseException, repo: str, revision: str | None) -> HubError:
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, repo, revision)
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain):
        return HubUnreachable("HF_HUB_OFFLINE forbids downloading", file=repo, hint="load it once without that")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError("token=True, but nobody is logged in", file=repo, hint=_LOG_IN)
    if any(isinstance(cause, errors.FileMetadataError) for cause in chain):
        return stranger(repo, endpoint())
    for cause in chain:
        if isinstance(cause, HTTPError):
            problem = f"the Hub at {endpoint()} cannot be reached ({_first_line(cause)})"
            return Transient(problem, file=repo, hint="check the connection, or pass a local directory")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        hint = "make room, or pass another cache_dir"
        return HubError(f"cannot be stored ({_first_line(error)})", file=repo, hint=hint)
    return Transient(f"cannot be downloaded ({_first_line(error)})", file=repo, hint=_LATER)


def stranger(repo: str, address: str) -> HubError:
    """Returns the error for an answer of something else than a Hub: a log-in page, a proxy, or a wrong HF_ENDPOINT."""
    hint = "log in to the network with a browser, or check the proxy and HF_ENDPOINT"
    return HubUnreachable(f"a web page answers in place of the Hub at {public(address)}", file=repo, hint=hint)


def endpoint() -> str:
    """Returns the Hub's address, without a password that HF_ENDPOINT may hold."""
    return public(constants.ENDPOINT)


def public(text: str) -> str:
    """Returns `text` without tokens, passwords, and the signatures in addresses of files."""
    return _SECRET.sub("...", text)


def _refused(error: HfHubHTTPError, repo: str, revision: str | None) -> HubError:
    """Explains an HTTP status. The Hub answers 401 for anything whose existence it hides from strangers."""
    status = error.response.status_code
    page = f"{endpoint()}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        ask = f"ask for access at {page}" + (f", then {_LOG_IN}" if status == HTTPStatus.UNAUTHORIZED else "")
        return HubError("is gated, and you have no access yet", file=repo, hint=ask)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = similar(Path(repo)) or f"check the spelling; if it is private, {_LOG_IN}"
        return HubError(f"there is no such repository at {endpoint()}, or it is private", file=repo, hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        hint = f"{page}/tree/main lists branches and tags; a commit needs its full hash"
        return HubError(f"has no revision {revision or 'main'!r}", file=repo, hint=hint)
    if isinstance(error, errors.EntryNotFoundError):
        problem = f"lists a file that is not there: {public(str(error.response.url))}"
        return HubError(problem, file=repo, hint="try another revision")
    return _refused_otherwise(error, status, repo, page)


def _refused_otherwise(error: HfHubHTTPError, status: int, repo: str, page: str) -> HubError:
    """Explains a status without one of the Hub's error codes."""
    problem = f"the Hub answered {status} {error.response.reason_phrase}".rstrip()
    answering = urlsplit(str(error.response.url)).netloc
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        return _later(Transient(problem, file=repo, hint=_LATER), error.response.headers)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        problem = "the Hub allows no more requests for now (429)"
        return _later(Transient(problem, file=repo, hint=f"wait, or {_LOG_IN}"), error.response.headers)
    if answering.rpartition("@")[2] != urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]:
        # Large files lie elsewhere, and their address includes the access, which expires; the next try gets a new one.
        return Transient(f"{problem.replace('the Hub', public(answering))}", file=repo, hint=_LATER)
    if status == HTTPStatus.UNAUTHORIZED:
        return HubError("the Hub does not accept the token", file=repo, hint=_LOG_IN)
    if status == HTTPStatus.FORBIDDEN:
        said = public((error.server_message or "").partition("\n")[0][:200])
        hint = f"the token needs permission to read this repository; see {endpoint()}/settings/tokens"
        return HubError("the Hub forbids access" + (f" ({said})" if said else ""), file=repo, hint=hint)
    return HubError(problem, file=repo, hint=f"see {page}")


def _later(error: Transient, headers: Mapping[str, str]) -> Transient:
    """Returns `error` with the wait in seconds from Retry-After (a number or a date) or the Hub's RateLimit header."""
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        error.wait = float(said)
    elif said:
        try:
            error.wait = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return error  # a header that is neither asks for nothing
    elif reset := re.search(r"\bt=(\d+)", headers.get("ratelimit", "")):
        error.wait = float(reset[1])
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields `error` and its causes, outermost first: huggingface_hub wraps the error that explains most."""
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    return public(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
