"""Weights that stay on the Hub: any range of a file's bytes, received straight into the caller's memory.

The Hub is asked once per file for the file's address; its token goes to the Hub's own origin alone. Every answer must
state the requested range, and the same size and ETag as the others, so that two versions never mix. A file of which one
process receives every byte is compared with the hash that the Hub states; the connection's encryption is all that
protects the others.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers

from easydel.checkpoint.files import INDEX_SUFFIX
from easydel.errors import HubError
from easydel.hub.attempts import attempt, persist
from easydel.hub.explain import Transient
from easydel.hub.hashed import RangeHash
from easydel.hub.parallel import at_once
from easydel.hub.remote import Repository, ask, bring, download
from easydel.hub.select import ADAPTER_CONFIG, shard_names
from easydel.hub.verify import Digest

SMALL = (".gitattributes", "README.md")  # what nearly every repository has
_CHANGED_HINT = "somebody changed it; load it again"


class Location(NamedTuple):
    """A file's address and properties as the Hub states them; `url` may be signed, and expire."""

    url: str
    size: int
    etag: str | None


@dataclass
class RemoteFile:
    """A file of one commit on the Hub; threads may share it. `shown` is its name in errors."""

    repo: Repository
    commit: str
    name: str
    stated: Digest | None
    _location: Location | None = field(default=None, repr=False)
    _first: Location | None = field(default=None, repr=False)
    _etag: str | None = None  # of the content at the file's address, which differs from the Hub's own
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def shown(self) -> Path:
        return Path(self.repo.id, self.name)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return persist(self._locate).size

    @cached_property
    def hash(self) -> RangeHash:
        """The hash of the ranges so far."""
        return RangeHash(self.size, self.stated, str(self.shown))

    def leave_hash(self, reason: str) -> None:
        """Compares no hash, for that reason."""
        self.hash.leave(reason)

    def verdict(self) -> str:
        """Returns whether the whole file has the Hub's hash, once everything was read that is needed."""
        return self.hash.verdict(self.read_into)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` with the bytes from `offset` on. A connection that breaks is resumed where it broke."""
        done = 0

        def receive() -> None:
            nonlocal done
            location = self._locate()
            start = offset + done
            try:
                with attempt(self.repo.id, self.repo.revision), self._answer(location, start, offset + len(out)) as got:
                    self._check(got, location, start, offset + len(out))
                    for chunk in got.iter_raw():
                        if len(chunk) > len(out) - done:
                            raise HubError("sends more than it was asked for", file=self.shown)
                        out[done : done + len(chunk)] = chunk
                        done += len(chunk)
            except Transient as error:
                error.file = str(self.shown)
                raise
            if done < len(out):
                raise Transient("the connection ended early", file=self.shown)

        if len(out):
            persist(receive)
            self.hash.add(offset, out)

    def _answer(self, location: Location, start: int, stop: int) -> Any:
        """Returns a context with the response. Only the Hub itself gets the token: elsewhere the address is enough."""
        home = _origin(location.url) == _origin(constants.ENDPOINT)
        headers = build_hf_headers(token=self.repo.token if home else False)
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return get_session().stream("GET", location.url, headers=headers, timeout=timeout, follow_redirects=False)

    def _locate(self) -> Location:
        """Returns the file's current address. Raises HubError if the Hub's file is not the one of the first time."""
        with self._lock:
            if self._location is None:
                url = hf_hub_url(self.repo.id, self.name, revision=self.commit)
                with attempt(self.repo.id, self.repo.revision):
                    found = get_hf_file_metadata(url, token=self.repo.token)
                if found.size is None:
                    raise HubError("the Hub does not say how large it is", file=self.shown, hint="load without stream")
                location = Location(found.location, found.size, found.etag)
                if self._first is not None and location[1:] != self._first[1:]:
                    raise HubError("is not what it was when the load began", file=self.shown, hint=_CHANGED_HINT)
                self._first = self._first or location
                self._location, self._etag = location, None
            return self._location

    def _check(self, response: Any, location: Location, start: int, stop: int) -> None:
        """Raises HubError unless the answer is that range of that version of the file."""
        status, headers = response.status_code, response.headers
        if status >= HTTPStatus.MULTIPLE_CHOICES and status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._forget(location)  # the address may have expired: the next try asks for a new one
            if status < HTTPStatus.BAD_REQUEST:
                raise Transient("lies elsewhere than the Hub says", file=self.shown)
            response.read()
            hf_raise_for_status(response)
        etag = headers.get("etag")
        with self._lock:
            if self._location is location:
                self._etag = self._etag or etag
            expected = self._etag
        stated = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
        total = int(stated[3]) if stated else location.size
        changed = expected is not None and etag is not None and etag != expected
        if changed or total != location.size or status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise HubError("changed while it was read", file=self.shown, hint=_CHANGED_HINT)
        if (
            status != HTTPStatus.PARTIAL_CONTENT
            or stated is None
            or headers.get("content-encoding", "identity") != ("identity")
        ):
            problem = f"{_origin(location.url)} does not send parts of files (it answered {status})"
            raise HubError(problem, file=self.shown, hint="load without stream=True")
        if (int(stated[1]), int(stated[2])) != (start, stop - 1):
            raise HubError(f"asked for bytes {start}-{stop - 1}, got {stated[0]!r}", file=self.shown)

    def _forget(self, location: Location) -> None:
        with self._lock:
            if self._location is location:
                self._location = None


class Streamed(NamedTuple):
    """A repository whose weights stay on the Hub: small files in a local `directory`, weights by shown path."""

    directory: Path
    index_file: Path | None
    weights: Mapping[Path, RemoteFile]


def open_stream(repo: Repository, *, headers_only: bool = False) -> Streamed | Path:
    """Fetches the config, tokenizer and index of a repository, and locates its safetensors files.

    With `headers_only`, GGUF files will do, whose weights cannot be streamed. Returns the local folder of a repository
    that holds adapters alone: they are small.
    """
    listing = persist(lambda: ask(repo))
    known = (".safetensors", ".gguf") if headers_only else (".safetensors",)
    if not any(name.endswith((*known, f".safetensors{INDEX_SUFFIX}")) for name in listing.files):
        _refuse(repo)
    names = repo.needed(listing.files, lambda index: shard_names(bring(repo, listing, index)), weights=True)
    if any(name.rpartition("/")[2] == ADAPTER_CONFIG for name in names):
        return download(repo, listing, weights=True)
    weights = [name for name in names if name.endswith(known)]
    if not weights:
        _refuse(repo)
    small = [name for name in names if name not in weights]
    if weights[0].endswith(".gguf") and not small:  # some file, to know the folder
        small = sorted(name for name in listing.files if name.rpartition("/")[2] in SMALL)[:1]
    config = next((name for name in small if name.rpartition("/")[2] == "config.json"), None)
    if config is None and weights[0].endswith(".gguf") and small:
        config = small[0]
    if config is None:
        raise HubError("has no config.json", file=repo.id, hint="is it the repository of a model?")
    paths = dict(zip(small, at_once(lambda name: bring(repo, listing, name), small, repo.halted), strict=True))
    remote = [RemoteFile(repo, listing.commit, name, listing.files[name]) for name in weights]
    index = next((path for name, path in paths.items() if name.endswith(INDEX_SUFFIX)), None)
    return Streamed(paths[config].parent, index, {file.shown: file for file in remote})


def _refuse(repo: Repository) -> None:
    problem = "has no safetensors, and stream=True reads nothing else"
    raise HubError(problem, file=repo.id, hint="load it without stream=True, which downloads it")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
