"""The trainer: killed and started again, it continues bit for bit as if it had not been stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from cases.llama import llama
from trained import random_model, small

from easydel.errors import ArgumentError, EasyDeLError
from easydel.lora import LoRA, add_adapters
from easydel.train import Settings, Trainer
from easydel.tree import flatten

CASE = small(llama("trainer"), num_hidden_layers=1)
SETTINGS = Settings(steps=3, batch=2, length=8, save_every=4, seed=1)
TOKENS = np.random.default_rng(0).integers(3, 97, 203).astype(np.int32)
MEASURED = ("seconds", "tokens_per_second", "memory")
KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
from test_train_trainer import trainer
trainer(Path(sys.argv[2]), steps=10**6, layers=1).run()
"""


def trainer(directory: Path, *, steps: int, layers: int = 0, **changes: Any) -> Trainer:
    model, params = random_model(CASE, layers=layers)
    settings = replace(SETTINGS, **{"steps": steps, **changes})
    return Trainer(model, params, optax.adam(1e-2), TOKENS, directory, settings)


def log_of(directory: Path) -> list[dict[str, Any]]:
    """The lines without what depends on the machine."""
    file = directory / "losses.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def test_killed_and_resumed_it_has_the_losses_of_a_run_that_was_not(tmp_path: Path):
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(killed)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(log_of(killed)) < 6 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    steps = len(log_of(killed)) + 2
    saved = max(int(folder.name) for folder in (killed / "checkpoints").iterdir() if folder.name.isdigit())
    assert 4 <= saved <= steps - 2

    resumed = trainer(killed, steps=steps, layers=1)
    state = resumed.run()
    whole = trainer(tmp_path / "whole", steps=steps, layers=1).run()
    assert log_of(killed) == log_of(tmp_path / "whole")
    assert [line["step"] for line in log_of(killed)] == list(range(1, steps + 1))
    for path, leaf in flatten(whole.params).items():
        np.testing.assert_array_equal(flatten(state.params)[path], leaf, err_msg=path)
    assert int(state.count) == steps
    assert flatten(resumed.model.params)["lm_head/kernel"] is flatten(state.params)["lm_head/kernel"]


def test_a_log_that_was_deleted_has_each_step_after_that_once(tmp_path: Path):
    trainer(tmp_path, steps=2, save_every=2).run()
    log = tmp_path / "losses.jsonl"
    log.unlink()
    trainer(tmp_path, steps=4, save_every=2).run()
    assert [line["step"] for line in log_of(tmp_path)] == [3, 4]
    with log.open("a") as file:  # as a run leaves it that is killed after its checkpoint
        file.write(json.dumps(log_of(tmp_path)[-1] | {"step": 5}) + '\n{"step": 6, "lo')
    trainer(tmp_path, steps=6, save_every=2).run()
    assert [line["step"] for line in log_of(tmp_path)] == [3, 4, 5, 6]


def test_separate_documents_give_other_losses_and_are_gone_on_with_exactly(tmp_path: Path):
    choices: dict[str, Any] = {"document_end": 5, "save_every": 2}
    trainer(tmp_path / "stopped", steps=2, layers=1, **choices).run()
    trainer(tmp_path / "stopped", steps=4, layers=1, **choices).run()
    trainer(tmp_path / "whole", steps=4, layers=1, **choices).run()
    trainer(tmp_path / "joined", steps=4, layers=1).run()
    separate, joined = log_of(tmp_path / "whole"), log_of(tmp_path / "joined")
    assert log_of(tmp_path / "stopped") == separate
    assert all(ours["loss"] != theirs["loss"] for ours, theirs in zip(separate, joined, strict=True))
    assert sum(line["tokens"] for line in separate) < sum(line["tokens"] for line in joined)
    with pytest.raises(ArgumentError, match="document_end was 5, is None"):
        trainer(tmp_path / "stopped", steps=5, layers=1).run()


def test_progress_shows_steps_and_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer(tmp_path, steps=2).run(progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert f"loss {log_of(tmp_path)[-1]['loss']:.4f}" in shown


def test_what_would_not_be_the_same_training_is_refused(tmp_path: Path):
    trainer(tmp_path, steps=1).run()
    with pytest.raises(ArgumentError, match=r"holds another training(.|\n)*batch was 2, is 4"):
        trainer(tmp_path, steps=2, batch=4).run()
    with pytest.raises(ArgumentError, match="the data is another"):
        replace(trainer(tmp_path, steps=2), examples=TOKENS[:-20]).run()
    with pytest.raises(ArgumentError, match=r"rate was None, is 0\.1"):
        replace(trainer(tmp_path, steps=2), identity={"rate": 0.1}).run()
    with pytest.raises(ArgumentError, match="the trained parameters or the optimizer's state have other names"):
        replace(trainer(tmp_path, steps=2), trainable=lambda path: "norm" in path).run()
    assert len(log_of(tmp_path)) == 1


def adapting(directory: Path, *, steps: int, alpha: int = 4, seed: int = 0, dtype: str = "float32") -> Trainer:
    model, _ = random_model(CASE, layers=1, seed=seed, param_dtype=dtype)
    params = add_adapters(model, LoRA(r=2, lora_alpha=alpha, target_modules=["q_proj"]))
    return Trainer(model, params, optax.adam(1e-2), TOKENS, directory, replace(SETTINGS, steps=steps))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_not_trained_on_with_another_base_or_scale(tmp_path: Path, dtype: str):
    adapting(tmp_path, steps=1, dtype=dtype).run()
    with pytest.raises(
        ArgumentError, match=r"holds another training(.|\n)*the parameters that are not trained have other values"
    ):
        adapting(tmp_path, steps=2, seed=1, dtype=dtype).run()
    with pytest.raises(ArgumentError, match=r"adapters was(.|\n)*lora_alpha=4(.|\n)*is(.|\n)*lora_alpha=40"):
        adapting(tmp_path, steps=2, alpha=40, dtype=dtype).run()
    assert int(adapting(tmp_path, steps=2, dtype=dtype).run().count) == 2


@pytest.mark.parametrize(("name", "value"), [("batch", "2"), ("save_every", 2.5), ("keep", 0), ("steps", True)])
def test_settings_that_are_no_counts_are_refused(name: str, value: Any):
    with pytest.raises(ArgumentError, match=f"{name}={value!r}, expected at least 1 as a whole number"):
        replace(SETTINGS, **{name: value})


def test_checkpoints_of_adapters_do_not_hold_the_base_and_are_gone_on_with(tmp_path: Path):
    counts = []
    for steps in (1, 2):
        model, _ = random_model(CASE, int8=True)
        params = add_adapters(model, LoRA(r=2))
        state = Trainer(model, params, optax.adam(1e-2), TOKENS, tmp_path, replace(SETTINGS, steps=steps)).run()
        counts.append(int(state.count))
    assert counts == [1, 2]
    names = (tmp_path / "checkpoints" / "2" / "state" / "_METADATA").read_text()
    assert "lora_A" in names
    assert "kernel" not in names


def test_a_loss_that_is_no_number_stops_it_and_is_not_saved(tmp_path: Path):
    diverging = replace(trainer(tmp_path, steps=8), optimizer=optax.sgd(1e30))
    with pytest.raises(EasyDeLError, match="lower the learning rate"):
        diverging.run()
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 3, "accumulate": 2}, "batch=3 cannot be cut into accumulate=2"),
        ({"length": 1}, "length=1"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        replace(SETTINGS, **changes)


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path):
    with pytest.raises(ArgumentError, match="tokens reach 97, and the model has 97"):
        replace(trainer(tmp_path, steps=1), examples=np.full(100, 97)).run()
