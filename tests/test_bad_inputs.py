"""Whatever lies in a directory: one readable EasyDeLError in time; nothing else opened, run or allocated."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import Bad, all_bad
from bad_inputs.valid import write_gguf, write_safetensors, write_torch

from easydel import AutoEasyDeLModelForCausalLM, EasyDeLError, loading

CASES = all_bad()
SECONDS, HANG_SECONDS = 3, 60  # of the processor: others may be busy on this machine
MEMORY = 200 << 20
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
CODE = tuple(
    os.path.realpath(path)
    for path in {sys.prefix, sys.base_prefix, os.fspath(Path(loading.__file__).parent), "/proc", "/sys"}
)
_events: list[tuple[str, str]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and (event == "open" or event in RUNS):
        _events.append((event, str(arguments[0])))


sys.addaudithook(_audit)  # cannot be removed: it does nothing outside of `watched`


@pytest.fixture
def watched() -> Iterator[list[tuple[str, str]]]:
    """What was opened and run during the test; a test that hangs is ended."""
    global _events

    def late(*_: Any) -> None:
        raise AssertionError(f"hangs: not done after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_SECONDS)
    _events = events = []
    yield events
    _events = None
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _started(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports and JAX's first use count for no case; the valid model that the cases spoil loads."""
    directory = tmp_path_factory.mktemp("valid")
    write_safetensors(directory)
    AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    write_torch(directory)
    AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    write_gguf(directory)
    (directory / "pytorch_model.bin").unlink()
    AutoEasyDeLModelForCausalLM.from_pretrained(directory)


def outside(events: list[tuple[str, str]], home: Path) -> list[tuple[str, str]]:
    """The events that are neither opening a file in `home` nor one of Python's own."""
    allowed = (os.path.realpath(home), *CODE)
    return [
        (event, name)
        for event, name in events
        if event != "open" or not (name.isdigit() or os.path.realpath(name).startswith(allowed))
    ]


def test_there_are_many_cases_with_names_of_their_own():
    assert len(CASES) >= 300
    assert len({bad.name for bad in CASES}) == len(CASES)


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_bad_input_is_refused(
    bad: Bad, tmp_path: Path, watched: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
):
    directory = tmp_path / "model"
    directory.mkdir()
    write_safetensors(directory)
    path = bad.make(directory) or directory
    before = sorted(os.walk(tmp_path))
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("weights were read"))
    watched.clear()
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(EasyDeLError) as caught:
        AutoEasyDeLModelForCausalLM.from_pretrained(path, **bad.arguments)
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10
    message = str(caught.value)
    assert [word for word in bad.words if word not in message] == [], message
    assert str(caught.value.file or "").endswith(bad.file), message
    assert bad.tensor in (None, caught.value.tensor), message
    assert len(message) < 20_000
    assert outside(watched, directory) == []
    assert sorted(os.walk(tmp_path)) == before
    assert seconds < SECONDS
    assert grown < MEMORY
