"""A Hub on the loopback interface: as much of its API as huggingface_hub's client uses to list and download.

`serving()` starts one and points huggingface_hub at it. Large files lie on a second server, as on the real Hub. A test
fills `hub.repos`, adds to `hub.faults`, and reads `hub.requests` and `hub.waits`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from easydel.hub import attempts

LARGE = (".safetensors", ".bin", ".gguf")  # kept out of git: named by sha256, and served from another origin
PAGE = b"<html><body>Welcome to our network! Please log in.</body></html>"


class Request(NamedTuple):
    method: str
    path: str
    token: str | None
    storage: bool  # sent to the server of large files
    range: str | None


@dataclass
class Fault:
    """What goes wrong with a request: another `status`, a body that breaks, stalls, lies, is a web page, or is `whole`
    though a range was asked for, or the ETag of another version."""

    status: int = 0
    code: str = ""
    message: str = ""
    body: Literal["", "drop", "reset", "stall", "corrupt", "page", "whole", "other"] = ""
    headers: dict[str, str] = field(default_factory=dict)
    spared: int = 0  # how many requests it does not meet before
    times: int = 1000  # how many requests it meets
    storage: bool | None = None  # only those to the server of large files, or only the others
    method: str = ""  # only those


@dataclass
class Repo:
    files: dict[str, bytes]
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str | None = None  # what a private or gated repository wants to see
    states_hashes: bool = True  # some mirrors list bare names

    @property
    def sha(self) -> str:
        """The commit: changes with the content."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    url: str = ""
    storage_url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)  # by the end of a request's path
    requests: list[Request] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds that somebody wanted to sleep, and did not
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetched(self) -> set[str]:
        """The names of all files whose bytes were sent."""
        paths = {unquote(request.path) for request in self.requests if request.method == "GET"}
        return {path.split("/resolve/")[1].partition("/")[2] for path in paths if "/resolve/" in path}

    def fault(self, method: str, path: str, *, storage: bool, sending: bool) -> Fault | None:
        """The fault that a request for `path` meets now; those of a body strike only where one is sent."""
        with self.lock:
            for end, fault in self.faults.items():
                fits = path.endswith(end) and fault.times and fault.method in ("", method)
                fits = fits and fault.storage in (None, storage)
                if fits and (sending if fault.body in ("drop", "reset", "stall", "corrupt") else not sending):
                    if fault.spared:
                        fault.spared -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    storage: bool
    odd: str = ""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgement of its headers

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `hub.requests` is the log."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, token, self.storage, self.headers.get("Range")))
        fault = self.hub.fault(self.command, unquote(path), storage=self.storage, sending=False)
        if fault and fault.body == "page":
            return self.send(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})
        self.odd = fault.body if fault else ""
        if fault and not fault.body:
            return self.refuse(fault.status, fault.code, fault.message, fault.headers)
        if path.startswith("/api/models/"):
            return self.answer_api(path.removeprefix("/api/models/"), token)
        repo_id, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        repo = self.permitted(repo_id, revision, token, content=True)
        if repo and unquote(name) not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if repo:
            return self.send_file(repo, unquote(name))
        return None

    def answer_api(self, path: str, token: str | None) -> None:
        repo_id, _, revision = path.partition("/revision/")
        repo = self.permitted(repo_id, unquote(revision) or "main", token, content=False)
        if repo is not None:
            detailed = repo.states_hashes and "blobs" in self.path
            siblings = [
                {"rfilename": name, **(self.detail(name, content) if detailed else {})}
                for name, content in repo.files.items()
            ]
            content = json.dumps({"id": repo_id, "sha": repo.sha, "siblings": siblings}).encode()
            self.send(200, content, {"Content-Type": "application/json"})

    def detail(self, name: str, content: bytes) -> dict[str, object]:
        if not name.endswith(LARGE):
            return {"size": len(content), "blobId": git_id(content)}
        pointer = b"oid sha256:%b" % sha256(content).encode()
        lfs = {"size": len(content), "sha256": sha256(content), "pointerSize": len(pointer)}
        return {"size": len(content), "blobId": git_id(pointer), "lfs": lfs}

    def permitted(self, repo_id: str, revision: str, token: str | None, *, content: bool) -> Repo | None:
        """The repository, unless it is missing, hidden, gated or has no such revision: then that is the answer.

        As on the real Hub, strangers get 401 for what does not exist, a gated repository can be listed, and where
        large files lie, the address is all that it takes.
        """
        repo = self.hub.repos.get(repo_id)
        welcome = self.storage or (repo is not None and token == repo.token)
        if repo is None or not (welcome or repo.gated or repo.token is None):
            self.refuse(404 if token and repo is None else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and content and not welcome:
            self.refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        elif revision not in (*repo.branches, repo.sha):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            return repo
        return None

    def send_file(self, repo: Repo, name: str) -> None:
        content = repo.files[name]
        headers = {"X-Repo-Commit": repo.sha, "ETag": f'"{git_id(content)}"', "Content-Type": "binary/octet-stream"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"'}
            if not self.storage:
                return self.send(302, b"", headers | {"Location": self.hub.storage_url + self.path})
        asked = None if self.odd == "whole" else self.headers.get("Range")
        if self.odd == "other":
            headers["ETag"] = '"other"'
        if asked is None:
            return self.send(200, content, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.send(206, content[start:stop], headers)

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, b"", {**(headers or {}), **{name: value for name, value in said.items() if value}})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not content:
            return
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.fault(self.command, path, storage=self.storage, sending=True)
        if fault is None:
            self.wfile.write(content)
        elif fault.body == "corrupt":
            self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            self.wfile.write(content[: len(content) // 2])
            self.break_off(fault.body)

    def break_off(self, how: str) -> None:
        self.close_connection = True
        self.wfile.flush()
        if how == "stall":
            self.hub.closing.wait(30)
        elif how == "reset":  # a close with unsent data that must not linger is a reset
            time.sleep(0.02)  # the half body first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, *, storage: bool):
        super().__init__(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub, "storage": storage}))
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shutdown_request(self, request: object) -> None:
        with suppress(OSError):  # it may have been reset
            super().shutdown_request(request)  # type: ignore[arg-type]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running `Hub` that huggingface_hub takes for the real one, with a cache of its own and nobody logged in.

    Nobody sleeps between tries: `hub.waits` keeps how long it would have been.
    """
    hub = Hub()
    servers = [Server(hub, storage=False), Server(hub, storage=True)]
    hub.url, hub.storage_url = (server.url for server in servers)

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(attempts, "sleep", hub.waits.append)
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=hub.waits.append, time=time.time))
    huggingface_hub.close_session()  # the client read the proxies when it was made
    try:
        yield hub
    finally:
        hub.closing.set()
        huggingface_hub.close_session()
        for server in servers:
            server.shutdown()
            server.server_close()
