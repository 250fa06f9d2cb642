"""Two real processes with four CPU devices each form one mesh."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case
from cases.llama import SIZES
from parity import make_reference, reference_logits

WORKER = Path(__file__).parent / "multiprocess" / "worker.py"
CASE = Case("llama-processes", "llama", SIZES | {"num_hidden_layers": 2, "vocab_size": 96})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    reference = make_reference(CASE, path)
    np.save(path / "logits.npy", reference_logits(reference, np.arange(16).reshape(2, 8)))
    return path


def run_both(directories: tuple[Path, Path], mode: str, folder: Path) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    results = [folder / f"result-{process}.json" for process in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), address, str(process), str(directory), mode, str(results[process])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, directory in enumerate(directories)
    ]
    try:
        outputs = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    problems = [err for worker, (_, err) in zip(workers, outputs, strict=True) if worker.returncode]
    assert not problems, "\n".join(problems)
    return [json.loads(result.read_text()) for result in results]


@pytest.mark.parametrize("mode", ["fsdp", "mixed"])
def test_each_process_reads_only_its_own_bytes(directory: Path, mode: str, tmp_path: Path):
    results = run_both((directory, directory), mode, tmp_path)
    for result in results:
        assert result["equal"]
        assert result["read"] == result["owned"]
        assert result["logits"] < 1e-4
    total = (directory / "model.safetensors").stat().st_size
    assert max(result["read"] for result in results) < 0.62 * total  # half, and the norms that all devices hold


def test_a_failure_in_one_process_is_raised_by_all(directory: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[:-100])
    healthy, failed = run_both((directory, broken), "failing", tmp_path)
    assert healthy["error"] == failed["error"]
    assert "process 1" in failed["error"]
    assert str(broken / "model.safetensors") in failed["error"]
    assert {healthy["kind"], failed["kind"]} == {"CheckpointError"}
    assert healthy["seconds"] < 30
