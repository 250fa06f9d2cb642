"""Downloads that break, stall, are throttled, or are answered by something that is no Hub."""

from __future__ import annotations

import http.server
import logging
import re
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from hub_server import Fault, Handler, Hub, Repo, serving
from huggingface_hub import constants, get_session

from easydel.errors import ArgumentError, HubError
from easydel.hub import fetch

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b'{"a": 1}', "tokenizer.json": b'{"b": 2}', "model.safetensors": WEIGHTS}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch, tmp_path) as hub:
        hub.repos["org/model"] = Repo(dict(FILES))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
        yield hub


def refusal(**options: object) -> HubError:
    with pytest.raises(HubError) as caught:
        fetch("org/model", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


def loads(**options: object) -> bool:
    folder = fetch("org/model", **options)  # type: ignore[arg-type]
    return {file.name: file.read_bytes() for file in folder.iterdir()} == FILES


# What passes


@pytest.mark.parametrize("body", ["drop", "reset", "stall"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_body_that_breaks_or_stalls_is_asked_for_again(hub: Hub, body: str, name: str):
    hub.faults[name] = Fault(body=body, times=2)  # type: ignore[arg-type]
    assert loads()
    assert hub.faults[name].times == 0
    assert hub.waits


def test_a_broken_body_is_taken_up_where_it_broke(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.faults["model.safetensors"] = Fault(body="drop", times=1)
    assert loads()
    assert [request.range for request in hub.requests if request.storage and request.method == "GET"] == [
        None,
        f"bytes={len(WEIGHTS) // 2}-",
    ]


@pytest.mark.parametrize("storage", [True, False])
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_refusals_are_waited_out(hub: Hub, status: int, storage: bool):
    hub.faults["model.safetensors"] = Fault(status, times=3, storage=storage)
    assert loads()
    assert hub.waits == [1, 2, 4]


def test_an_address_of_a_large_file_that_expired_is_asked_for_anew(hub: Hub):
    hub.faults["model.safetensors"] = Fault(403, times=1, storage=True)
    assert loads()


def test_a_listing_that_fails_at_first_is_asked_for_again_if_nothing_is_cached(hub: Hub):
    hub.faults["api/models/org/model"] = Fault(503, times=3)
    assert loads()
    hub.waits.clear()
    hub.faults["api/models/org/model"] = Fault(503, times=1)
    assert loads()  # from the cache, at once
    assert hub.waits == []


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "17"}, 17, 17),
        ({"Retry-After": "in 200 seconds"}, 100, 200),
        ({"Retry-After": formatdate(0, usegmt=True)}, 1, 1),
        ({"Retry-After": "soon"}, 1, 1),
        ({"RateLimit": '"resolvers";r=0;t=42'}, 42, 42),
    ],
    ids=["seconds", "date", "past", "nonsense", "ratelimit"],
)
@pytest.mark.parametrize("path", ["api/models/org/model", "config.json", "model.safetensors"])
def test_the_wait_that_the_hub_asks_for_is_kept(
    hub: Hub, path: str, headers: dict[str, str], least: float, most: float
):
    if headers.get("Retry-After") == "in 200 seconds":  # counted from now, not from when tests were collected
        headers = {"Retry-After": formatdate(time.time() + 200, usegmt=True)}
    hub.faults[path] = Fault(429, headers=headers, times=1)
    assert loads()
    assert len(hub.waits) == 1
    assert least <= hub.waits[0] <= most


# What does not


@pytest.mark.parametrize("body", ["drop", "reset", "stall"])
def test_a_body_that_always_breaks_is_given_up(hub: Hub, body: str, tmp_path: Path):
    hub.faults["config.json"] = Fault(body=body)  # type: ignore[arg-type]
    if body == "stall":
        constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.02  # the fixture puts it back
    error = refusal()
    assert "(tried 4 times)" in error.problem
    assert error.hint
    assert len([request for request in hub.requests if request.path.endswith("config.json")]) <= 4 * 7
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_server_that_stays_ill_is_given_up_and_says_what_to_do(hub: Hub):
    hub.faults["model.safetensors"] = Fault(503, storage=True)
    error = refusal()
    assert "the Hub answered 503 Service Unavailable (tried 4 times)" in error.problem
    assert "load it again later" in str(error.hint)
    assert hub.waits == [1, 2, 4]
    hub.faults.clear()
    assert loads()


@pytest.mark.parametrize("path", ["api/models/org/model", "config.json", "model.safetensors"])
def test_a_wait_beyond_bounds_is_not_begun(hub: Hub, path: str):
    hub.faults[path] = Fault(429, headers={"Retry-After": "86400"})
    error = refusal()
    assert "asks to be left alone for 86400 seconds" in error.problem
    assert "wait, or log in" in str(error.hint)
    assert hub.waits == []


def test_a_hub_that_falls_silent_is_not_asked_for_minutes(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    send_file = Handler.send_file

    def silent(handler: Handler, repo: Repo, name: str) -> None:
        if name == "config.json":
            hub.closing.wait(30)
        else:
            send_file(handler, repo, name)

    monkeypatch.setattr(Handler, "send_file", silent)
    assert "does not answer any more (tried 4 times)" in refusal().problem
    assert len([request for request in hub.requests if request.path.endswith("config.json")]) == 4
    assert hub.waits == [1, 2, 4]


def test_other_users_of_the_client_keep_its_own_rules(hub: Hub):
    assert loads()
    hub.faults["/anywhere"] = Fault(503)
    assert get_session().get(f"{hub.url}/anywhere").status_code == 503


def test_the_first_file_that_fails_stops_the_others(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)
    refused = Handler.refuse

    def trickle(handler: Handler, repo: Repo, name: str) -> None:
        if name == "config.json":
            refused(handler, 403, "", "")
            return
        handler.send_response(200)
        for header, value in {"X-Repo-Commit": repo.sha, "ETag": '"e"', "Content-Length": "100000"}.items():
            handler.send_header(header, value)
        handler.end_headers()
        deadline = time.monotonic() + 20
        while handler.command == "GET" and time.monotonic() < deadline:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.01)

    monkeypatch.setattr(Handler, "send_file", trickle)
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "handle_error", lambda *_: None)  # the client hangs up
    started = time.monotonic()
    assert "forbids access" in refusal().problem
    assert time.monotonic() - started < 5


# Seven different answers


def test_each_kind_of_refusal_has_an_answer_of_its_own(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    paths = {
        "gated": ("api/models/org/model", Fault(401, "GatedRepo")),
        "forbidden": ("api/models/org/model", Fault(403)),
        "no repository": ("api/models/org/model", Fault(404, "RepoNotFound")),
        "no revision": ("api/models/org/model", Fault(404, "RevisionNotFound")),
        "no file": ("config.json", Fault(404, "EntryNotFound")),
        "portal": ("api/models/org/model", Fault(body="page")),
    }
    answers = {}
    for kind, (path, fault) in paths.items():
        hub.faults = {path: fault}
        answers[kind] = refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    answers["offline"] = refusal()
    assert len({answer.problem for answer in answers.values()}) == len(answers) == 7
    assert all(answer.hint and answer.file == "org/model" for answer in answers.values())
    assert hub.waits == []  # none of them passes


@pytest.mark.parametrize("path", ["api/models/org/model", "config.json", "model.safetensors"])
def test_a_captive_portal_is_recognised_wherever_it_steps_in(hub: Hub, path: str):
    hub.faults[path] = Fault(body="page")
    error = refusal()
    assert re.search("a web page answers in place of the Hub at http://127.0.0.1", error.problem)
    assert "log in to the network with a browser" in str(error.hint)
    hub.faults.clear()
    assert loads()


def test_a_portal_that_redirects_is_recognised_too(hub: Hub):
    hub.faults["api/models/org/model"] = Fault(302, headers={"Location": f"{hub.storage_url}/login"})
    hub.faults["/login"] = Fault(body="page")
    assert f"in place of the Hub at {hub.storage_url}" in refusal().problem
    del hub.faults["api/models/org/model"]
    hub.faults["config.json"] = Fault(302, headers={"Location": f"{hub.storage_url}/login"})
    assert "in place of the Hub" in refusal().problem


def test_behind_a_portal_an_earlier_download_serves(hub: Hub, caplog: pytest.LogCaptureFixture):
    assert loads()
    hub.faults["api/models/org/model"] = Fault(body="page")
    assert loads()
    assert "a web page answers in place of the Hub" in caplog.text


def test_asking_for_a_token_that_is_not_there_says_how_to_log_in(hub: Hub):
    error = refusal(token=True)
    assert (error.problem, error.hint) == (
        "token=True, but nobody is logged in",
        "log in with `hf auth login`, or pass token=",
    )


# Tokens


def test_the_token_reaches_only_the_hub_even_when_it_redirects(hub: Hub):
    hub.repos["org/model"].token = "hf_secret"
    stolen = {"Location": f"{hub.storage_url}/stolen"}
    for path, method in (("api/models/org/model", "GET"), ("config.json", "HEAD"), ("config.json", "GET")):
        hub.faults = {path: Fault(307, headers=stolen, method=method)}
        refusal(token="hf_secret")
    hub.faults.clear()
    assert loads(token="hf_secret")
    assert {"/stolen"} < {request.path for request in hub.requests if request.storage}
    assert {request.token for request in hub.requests if request.storage} == {None}


@pytest.mark.parametrize("token", ["hf_secret\n", "hf_sec ret", "hf_s\u00e9cret"])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(hub: Hub, token: str):
    with pytest.raises(ArgumentError) as caught:
        fetch("org/model", token=token)
    assert "hf_s" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert hub.requests == []


def test_no_message_or_log_line_holds_a_token(hub: Hub, caplog: pytest.LogCaptureFixture):
    hub.faults["api/models/org/model"] = Fault(403, message="token hf_secret may not")
    shown = str(refusal(token="hf_secret"))
    caplog.set_level(logging.DEBUG)
    for fault in (Fault(503), Fault(body="drop"), Fault(429)):
        hub.faults = {"config.json": fault}
        shown += str(refusal(token="hf_secret"))
    assert "may not" in shown
    assert "hf_secret" not in shown + caplog.text


def test_a_password_in_the_endpoint_is_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//user:hunter2@"))
    hub.repos.clear()
    assert "hunter2" not in str(refusal())
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:hunter2@127.0.0.1:9")
    assert "the Hub at http://...127.0.0.1:9 cannot be reached" in refusal().problem
