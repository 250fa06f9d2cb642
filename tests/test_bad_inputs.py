"""Every bad directory gives one readable EasyDeLError in time, and nothing else is opened, run or allocated."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import Bad, all_bad
from bad_inputs.valid import CONFIG, write_config, write_gguf, write_safetensors, write_sharded, write_torch
from commands import invoke

from easydel import AutoEasyDeLModelForCausalLM, EasyDeLError, loading

CASES = all_bad()
SECONDS, HANG_SECONDS = 1, 60  # of the processor: others may be busy on this machine
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
    assert len(CASES) >= 500
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
    monkeypatch.setattr(loading, "execute", lambda *_, **__: pytest.fail("weights were read"))
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


COMMAND = ("safetensors-cut-in-the-middle", "index-parent", "pickle-system-zip", "gguf-tensors-2**60", "config-deep")
COMMAND += ("fifo-for-config.json", "empty-directory", "safetensors-one-missing", "config-quantized", "name-too-long")


@pytest.mark.parametrize("bad", [bad for bad in CASES if bad.name in COMMAND], ids=lambda bad: bad.name)
def test_the_command_tells_a_bad_input_in_one_message(bad: Bad, tmp_path: Path, watched: list[tuple[str, str]]):
    directory = tmp_path / "model"
    directory.mkdir()
    write_safetensors(directory)
    path = bad.make(directory) or directory
    told = invoke("plan", path)
    assert told.exit_code == 2, told.output
    assert told.stderr.startswith("easydel: ")
    assert "Traceback" not in told.output
    assert [word for word in bad.words if word not in told.stderr] == [], told.stderr


def test_the_command_cases_exist():
    assert {bad.name for bad in CASES}.issuperset(COMMAND)


def test_code_for_a_known_model_type_is_not_run_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, watched: list[tuple[str, str]]
):
    write_safetensors(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    write_config(tmp_path, CONFIG | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}})
    watched.clear()
    with caplog.at_level("INFO", logger="easydel"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    said = [record.getMessage() for record in caplog.records if "auto_map" in record.getMessage()]
    assert said == [f"{tmp_path / 'config.json'} brings code of its own (auto_map): not run, our llama is used"]
    assert [name for event, name in watched if event == "open" and name.endswith(".py") and "evil" in name] == []


def test_links_as_in_the_cache_of_the_hub_load(tmp_path: Path, watched: list[tuple[str, str]]):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_safetensors(snapshot)
    (snapshot / "generation_config.json").write_text("{}")
    for number, file in enumerate(sorted(snapshot.iterdir())):
        os.rename(file, blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    AutoEasyDeLModelForCausalLM.from_pretrained(snapshot)
    write_sharded(snapshot)
    for number, file in enumerate(sorted(snapshot.glob("model*"))):
        os.rename(file, blobs / f"shard{number}")
        file.symlink_to(f"../../blobs/shard{number}")
    AutoEasyDeLModelForCausalLM.from_pretrained(snapshot)
    (blobs.parent / "refs").mkdir()
    os.rename(blobs / "shard0", blobs.parent / "refs" / "shard0")
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    (snapshot / "model-00001-of-00002.safetensors").symlink_to("../../refs/shard0")
    with pytest.raises(EasyDeLError, match="link out of the directory"):
        AutoEasyDeLModelForCausalLM.from_pretrained(snapshot)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory of a user without rights, who we are during the test: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00002-of-00002.safetensors", ""])
def test_a_file_that_may_not_be_read_is_named(name: str, as_nobody: Path):
    directory = as_nobody / "model"
    directory.mkdir()
    write_safetensors(directory)
    if "00002" in name:
        write_sharded(directory)
    place = directory / name
    place.chmod(0)
    try:
        with pytest.raises(EasyDeLError, match="Permission denied") as caught:
            AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    finally:
        place.chmod(0o755)
    assert str(caught.value.file).startswith(str(place))
