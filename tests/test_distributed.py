"""`--distributed`: two processes with files and caches of their own run one command; if one dies, the other ends."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from commands import invoke, invoke_json, make_model, start

from easydel.cli.distributed import Processes
from easydel.errors import ArgumentError

GENERATE = ("generate", "the quick fox", "--model", "model", "--no-chat", "-n", 4, "--json")
TRAIN = (
    "train",
    "model",
    "text.txt",
    "--batch",
    4,
    "--length",
    16,
    "--learning-rate",
    0.01,
    "--save-every",
    4,
    "--schedule",
    "constant",
)
TEXT = "the quick fox jumps over the lazy dog and the dog sleeps " * 40


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    make_model(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


def pair(host: Path, folder: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Starts a command as two processes, each in a copy of `host` and with caches there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = []
    for number in range(2):
        own = folder / f"host{number}"
        if not own.exists():
            shutil.copytree(host, own)
        which = ("--distributed", "--coordinator", address, "--num-processes", 2, "--process-id", number)
        places = {"HF_HOME": str(own / "hub"), "XDG_CACHE_HOME": str(own / "cache")}
        processes.append(start(*arguments, *which, devices=4, places=places, cwd=own))
    return processes


def outputs(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """The exit code, stdout and stderr of each process, once all have ended."""
    try:
        texts = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *said) for process, said in zip(processes, texts, strict=True)]


def losses_of(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_the_answer_of_two_hosts_is_that_of_one_and_the_first_prints_it(host: Path, tmp_path: Path):
    (first, printed, told), (second, *silence) = outputs(pair(host, tmp_path, *GENERATE))
    assert (first, second) == (0, 0), (told, *silence)
    alone = invoke_json(*GENERATE[:3], host / "model", *GENERATE[4:-1])
    assert json.loads(printed)["text"] == alone["text"]
    assert "mesh dp=1 fsdp=8 tp=1 sp=1" in told
    assert "".join(line for line in silence if "[Gloo]" not in line) == ""


def test_a_killed_process_ends_the_other_with_an_error_and_the_training_goes_on_when_both_start_again(
    host: Path, tmp_path: Path
):
    out = tmp_path / "out"
    processes = pair(host, tmp_path, *TRAIN, "--out", out, "--steps", 100_000)
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "4").is_dir() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), outputs(processes)
        time.sleep(0.2)
    processes[1].kill()
    (code, _, told), _ = outputs(processes)
    assert code == 2, told
    assert "easydel: process 1 on " in told
    assert "has given no sign of life" in told
    (code, _, told), (other, *_) = outputs(
        pair(host, tmp_path, *TRAIN, "--out", out, "--steps", len(losses_of(out)) + 8)
    )
    assert (code, other) == (0, 0), told
    assert "going on from step" in told
    whole = tmp_path / "whole"
    steps = len(losses_of(out))
    arguments = (host / "model", host / "text.txt", *TRAIN[3:], "--mesh", "1,1,1,1", "--out", whole, "--steps", steps)
    assert invoke("train", *arguments).exit_code == 0
    assert losses_of(out) == pytest.approx(losses_of(whole), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"num_processes": 2}, "--coordinator and --process-id missing"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 1}, "without --distributed"),
        ({"distributed": True, "coordinator": "a", "num_processes": 2, "process_id": 1}, "'a' has no port"),
        ({"distributed": True, "coordinator": "a:1", "num_processes": 2, "process_id": 2}, "count from 0"),
    ],
)
def test_a_wrong_place_among_the_processes_is_refused(given: dict, problem: str):
    with pytest.raises(ArgumentError, match=problem):
        Processes(**given)
