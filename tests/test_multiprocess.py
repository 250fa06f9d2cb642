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
import optax
import pytest
from cases import SIZES, Case
from parity import make_reference, reference_logits

from easydel import AutoEasyDeLModelForCausalLM
from easydel.checkpoint import find_checkpoint, open_checkpoint
from easydel.lora import LoRA, add_adapters, save_adapters
from easydel.train import Settings, Trainer

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
    alone, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    greedy = alone.generate(np.arange(16).reshape(2, 8), max_new_tokens=4, do_sample=False)
    for result in results:
        assert result["equal"]
        np.testing.assert_array_equal(result["tokens"], greedy.sequences)
        assert result["read"] == result["owned"]
        assert result["logits"] < 1e-4
        for choice, found in result["fewer"].items():
            assert found["equal"], choice
            assert found["read"] < 1.01 * found["held"], choice  # though a row's scale needs the whole row
    total = (directory / "model.safetensors").stat().st_size
    assert max(result["read"] for result in results) < 0.62 * total  # half, and the norms that all devices hold


def test_a_failure_in_one_process_is_raised_by_all_which_then_can_load_again(directory: Path, tmp_path: Path):
    (tmp_path / "mended").symlink_to(directory)
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
    assert healthy["again"] == failed["again"] > 0


def test_processes_that_differ_are_told_how_in_all_of_them(directory: Path, tmp_path: Path):
    results = run_both((directory, directory), "disagreeing", tmp_path)
    expected = {
        "mesh": "mesh: {'dp': 1, 'fsdp': 2, 'tp': 2, 'sp': 2} in process 1, {'dp': 1, 'fsdp': 8, 'tp': 1, 'sp': 1}",
        "devices": "mesh: none in process 1, {'dp': 1, 'fsdp': 8, 'tp': 1, 'sp': 1} in process 0",
        "config": "config.rms_norm_eps: 0.001 in process 1, 1e-05 in process 0",
        "dtype": "dtype: bfloat16 in process 1, float32 in process 0",
        "prompts": "prompts, ids_BT: int32[1, 8], digest ",
        "settings": "do_sample: True in process 1, False in process 0",
        "batch": "labels: int32[8, 8], digest ",
        "step": "process 1 is about to generate, process 0 to take a step of training",
    }
    for result in results:
        assert result.keys() == expected.keys()
        for name, text in expected.items():
            assert result[name]["kind"] == "ProcessError", name
            assert text in result[name]["error"]
            assert result[name]["seconds"] < 30
    assert "max_new_tokens: 3 in process 1, 2 in process 0" in results[0]["settings"]["error"]


def tensors(directory: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.read() for tensor in open_checkpoint(find_checkpoint(directory)).values()}


def assert_same_tensors(directory: Path, expected: Path) -> None:
    ours, theirs = tensors(directory), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_what_is_spread_is_saved_whole_by_one_and_a_failure_is_raised_by_all(directory: Path, tmp_path: Path):
    results = run_both((directory, directory), "saved", tmp_path)
    assert_same_tensors(tmp_path / "exported", directory)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "own", from_torch=False)
    model.export(tmp_path / "own-exported")
    assert_same_tensors(tmp_path / "own-exported", directory)

    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory, load_in_8bit=True)
    model.save_pretrained(tmp_path / "int8-alone")
    assert_same_tensors(tmp_path / "int8", tmp_path / "int8-alone")

    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory, scan_layers=True)
    add_adapters(model, LoRA(r=2), seed=3)
    save_adapters(model, tmp_path / "adapters-alone")
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapters" / name).read_bytes() == (tmp_path / "adapters-alone" / name).read_bytes()

    first, second = results
    assert first["in the way"]["error"] == second["in the way"]["error"]
    assert "process 0: is a file" in first["in the way"]["error"]
    assert first["nan"]["error"] == second["nan"]["error"]
    assert "NaN" in first["nan"]["error"]
    assert first["large"]["error"] == second["large"]["error"]
    assert "do not fit into float16" in first["large"]["error"]
    assert not (tmp_path / "nan").exists()
    assert not (tmp_path / "large").exists()
    assert max(result[name]["seconds"] for result in results for name in ("in the way", "nan", "large")) < 30


def test_a_training_of_two_processes_is_that_of_one(directory: Path, tmp_path: Path):
    assert [result["steps"] for result in run_both((directory, directory), "trained", tmp_path)] == [4, 4]
    tokens = np.random.default_rng(0).integers(3, 96, 400).astype(np.int32)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    settings = Settings(steps=4, batch=4, length=16)
    state = Trainer(model, params, optax.adam(1e-3), tokens, tmp_path / "alone", settings).run()
    model.export(tmp_path / "alone" / "result", state.params)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "losses.jsonl").read_text().splitlines()]
        for name in ("trained", "alone")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, theirs = tensors(tmp_path / "result"), tensors(tmp_path / "alone" / "result")
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
