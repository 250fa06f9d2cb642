"""Evaluations, schedules, optimizers by name, averages, logs, and the ends of a training before its last step."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from cases import all_cases
from commands import invoke
from test_train_trainer import CASE, SETTINGS, TOKENS, log_of, trainer
from trained import random_model, small

from easydel.errors import ArgumentError
from easydel.train import Optimization, Schedule, Trainer, causal_loss, encoded, evaluator, init_state, measured, step
from easydel.train.logs import MORE
from easydel.train.rows import takes_segments
from easydel.train.stopping import exhausted

HELD = [TOKENS[:11], TOKENS[20:26], TOKENS[30:37]]
PEAK = Schedule(0.5)


def test_an_evaluation_predicts_each_token_of_a_text_but_the_first_once():
    model, params = random_model(CASE, layers=0)
    rows = measured(TOKENS[:50], 8)
    found = evaluator(model, rows, 3)(params)
    split, parts = random_model(CASE, layers=0, mesh=(2, 1, 2, 2))
    np.testing.assert_allclose(evaluator(split, rows, 4)(parts).loss, found.loss, rtol=1e-5)
    assert found.tokens == 49
    pieces = [TOKENS[start : start + 8][:50] for start in range(0, 49, 7)]
    sums = [(float(causal_loss(model, params, {"input_ids": piece[None]})), len(piece) - 1) for piece in pieces]
    np.testing.assert_allclose(found.loss, sum(loss * count for loss, count in sums) / 49, rtol=1e-5)
    np.testing.assert_allclose(found.perplexity, np.exp(found.loss))
    ended = measured(np.array([3, 4, 9, 5, 6, 7]), 4, document_end=9)
    assert ended.learned == 4, "nothing predicts the first token of a document"


def test_what_is_held_out_is_evaluated_while_training_and_ends_it_when_it_gets_no_better(tmp_path: Path):
    stuck = replace(trainer(tmp_path, steps=40, eval_every=2, patience=2), evaluation=HELD)
    run = replace(stuck, optimizer=Optimization(Schedule(1e-9, "constant")))
    state = run.run(progress=False)
    held = [line for line in log_of(tmp_path) if "eval_loss" in line]
    assert len(held) >= 3
    assert int(state.count) == held[-1]["step"] == len([line for line in log_of(tmp_path) if "loss" in line])
    assert held[0]["eval_tokens"] == sum(min(len(example), 8) - 1 for example in HELD)
    again = replace(run, model=stuck.model, params=state.params)
    assert int(again.run(progress=False).count) == held[-1]["step"], "it has ended, and stays so"
    assert not exhausted([{"eval_loss": loss} for loss in (3.0, 2.0, 2.5)], 2)
    assert exhausted([{"eval_loss": loss} for loss in (3.0, 2.0, 2.5, 2.0)], 2)
    with pytest.raises(ArgumentError, match="patience=2 without examples for evaluation"):
        trainer(tmp_path, steps=2, patience=2).run()


def test_with_patience_the_result_is_the_model_of_the_best_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Also if that is found after a stop, and where an average is kept; without patience it is the last step's."""
    rising = Optimization(Schedule(0.3, "constant"), average=0.5)  # far too fast: it gets worse soon

    def run(patience: int | None, steps: int = 12) -> Trainer:
        made = replace(trainer(tmp_path / str(patience), steps=steps, eval_every=2, patience=patience), evaluation=HELD)
        return replace(made, optimizer=rising)

    ended = run(2)
    ended.run(progress=None)
    held = {line["step"]: line["eval_loss"] for line in log_of(tmp_path / "2") if "eval_loss" in line}
    lowest = min(held, key=held.__getitem__)
    assert lowest < max(held) < 12
    assert f"the result is that of step {lowest}, whose evaluation was the best" in capsys.readouterr().err
    again = run(2)
    again.run(progress=False)
    last = run(None, max(held))
    last.run(progress=False)
    rows = measured(encoded(HELD), 8)
    for made, count in ((ended, lowest), (again, lowest), (last, max(held))):
        found = evaluator(made.model, rows, 2)(made.model.params)
        np.testing.assert_allclose(found.loss, held[count], rtol=1e-6)
    assert not (tmp_path / "None/best").exists()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (replace(PEAK, shape="constant", warmup=2), [0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        (replace(PEAK, shape="linear", last=0.0), [0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0]),
        (replace(PEAK, shape="wsd", warmup=1, last=0.2, fall=0.4), [0, *[0.5] * 6, 0.4, 0.3, 0.2, 0.1]),
        (replace(PEAK, shape="cosine", last=0.0), [0.25 * (1 + np.cos(np.pi * n / 10)) for n in range(11)]),
    ],
    ids=lambda value: getattr(value, "shape", ""),
)
def test_the_rate_has_the_shape_that_was_asked_for(schedule: Schedule, expected: list[float]):
    rate = schedule.over(10)
    np.testing.assert_allclose([float(rate(count)) for count in range(11)], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_each_optimizer_goes_downhill_and_norms_do_not_decay(name: Any):
    optimizer = Optimization(Schedule(1e-2, "constant"), name, weight_decay=0.5).build(4)
    random = np.random.default_rng(0)
    params: Any = {"a": {"kernel": random.normal(0, 1, (3, 4, 2))}, "norm": {"scale": np.ones(2)}}
    params = jax.tree.map(jax.numpy.float32, params)
    state, start = optimizer.init(params), params
    for _ in range(4):  # towards zero, along half the squares
        updates, state = optimizer.update(params, state, params)
        params = jax.tree.map(np.add, params, updates)
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(params), strict=True):
        assert np.sum(np.square(after)) < 0.99 * np.sum(np.square(before))
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.005 * params["a"]["kernel"], rtol=1e-3)
    np.testing.assert_allclose(updates["norm"]["scale"], 0, atol=1e-7)


def test_muon_trains_stacked_layers_with_moments_split_like_them():
    model, params = random_model(small(CASE), scan_layers=True)
    optimizer = Optimization(Schedule(1e-2, "constant"), "muon", average=0.9).build(3)
    state, run = init_state(model, params, optimizer), step(model, optimizer)
    losses = []
    for _ in range(3):
        state, metrics = run(state, {"input_ids": TOKENS[:64].reshape(4, 16)})
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 0.1


def test_an_average_is_kept_beside_the_parameters_and_the_model_gets_it(tmp_path: Path):
    rate = Schedule(1e-2, "constant")
    states, models = [], []
    for keep in (None, 0.5):
        run = replace(trainer(tmp_path / str(keep), steps=2), optimizer=Optimization(rate, average=keep))
        before = np.array(run.params["lm_head"]["kernel"])
        states.append(run.run(progress=False).params["lm_head"]["kernel"])
        models.append(run.model.params["lm_head"]["kernel"])
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0], models[0])
    one = replace(trainer(tmp_path / "one", steps=1), optimizer=Optimization(rate)).run(progress=False)
    first = np.asarray(one.params["lm_head"]["kernel"])
    np.testing.assert_allclose(models[1], 0.25 * before + 0.25 * first + 0.5 * np.asarray(states[1]), atol=1e-6)


def test_epochs_are_counted_in_rows_and_a_longer_training_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = replace(trainer(tmp_path, steps=1), optimizer=Optimization(Schedule(1e-2)))
    one = replace(run, settings=replace(SETTINGS, steps=None, epochs=0.25))
    assert (len(one.source), one.steps) == (25, 4)
    one.run()
    assert "step 4/4  loss " in capsys.readouterr().err
    more = replace(run, settings=replace(SETTINGS, steps=5), params=one.model.params)
    assert int(more.run().count) == 5
    assert capsys.readouterr().err.startswith("going on from step 4 to 5, not 4; the learning rate now has the sched")
    replace(more, params=more.model.params).run()
    assert "step 5 was reached before, and 5 were asked for" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match=r"learning_rate was 0\.01, is 0\.02"):
        replace(more, params=more.model.params, optimizer=Optimization(Schedule(2e-2))).run()


@pytest.fixture
def attended() -> Iterator[None]:
    """Ctrl-C reaches this process, though it may be a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_step_and_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], attended: None):
    run = trainer(tmp_path, steps=200, save_every=200)
    advanced = []

    class Interrupted(type(run.source)):
        def __getitem__(self, index: int) -> Any:
            advanced.append(index)
            if len(advanced) == 6:  # in the third step
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(index)

    source = Interrupted(run.source.tokens, 8)  # type: ignore[union-attr]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        replace(run, examples=source).run()
    told = capsys.readouterr().err
    assert "stopping after this step" in told
    done = len(log_of(tmp_path))
    assert f"stopped after step {done} of 200, which is saved: started again" in told
    assert done in (2, 3)
    assert signal.getsignal(signal.SIGINT) is before
    state = trainer(tmp_path, steps=done + 1).run()
    assert int(state.count) == done + 1
    whole = trainer(tmp_path / "whole", steps=done + 1)
    whole.run(progress=False)
    assert log_of(tmp_path) == log_of(tmp_path / "whole")


def test_arrays_that_a_step_overwrote_are_refused_by_name(tmp_path: Path):
    run = trainer(tmp_path, steps=1)
    state = init_state(run.model, run.params, run.optimizer)  # type: ignore[arg-type]
    advance = step(run.model, run.optimizer)  # type: ignore[arg-type]
    advance(state, {"input_ids": TOKENS[:16].reshape(2, 8)})
    with pytest.raises(ArgumentError, match=r"this state were given to a step before, .*; go on with the state that"):
        advance(state, {"input_ids": TOKENS[:16].reshape(2, 8)})
    with pytest.raises(ArgumentError, match="the parameters were given to a step before"):
        run.run()


def test_models_that_cannot_keep_segments_apart_get_one_example_in_a_row(tmp_path: Path):
    recurrent = small(next(case for case in all_cases() if case.name == "mamba-plain"), num_hidden_layers=1)
    model, params = random_model(recurrent)
    assert not takes_segments(model)
    made = Trainer(model, params, Optimization(PEAK), HELD, tmp_path, replace(SETTINGS, batch=1, length=12))
    assert made.source[0].keys() == {"input_ids", "labels"}
    other, params = random_model(CASE)
    assert "segment_ids" in replace(made, model=other, params=params).source[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "steps=None and epochs=None; give one of them"),
        ({"epochs": 2}, "steps=3 and epochs=2"),
        ({"steps": None, "epochs": -1}, "epochs=-1, expected more than 0"),
        ({"log": ("excel",)}, r"log=\('excel',\), expected some of tensorboard, wandb"),
        ({"eval_every": 0}, "eval_every=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimization(PEAK, "sgd"), "no optimizer 'sgd'; use adamw, lion, adafactor, muon"),  # type: ignore[arg-type]
        (lambda: Optimization(PEAK, "adafactor", betas=(0.9, 0.9)), "adafactor has no betas"),
        (lambda: Optimization(PEAK, betas=(0.9, 1.5)), r"betas=\(0\.9, 1\.5\)"),
        (lambda: Optimization(PEAK, average=1.0), "keeps 1.0 of itself"),
        (lambda: Schedule(0.5, "square"), "no schedule 'square'; use constant, linear"),  # type: ignore[arg-type]
        (lambda: Schedule(0.5, last=2), "last=2"),
    ],
)
def test_optimizers_and_schedules_without_a_meaning_are_refused(make: Any, message: str):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_tensorboard_gets_every_number(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MORE["tensorboard"](tmp_path, 0) as log:
        log({"step": 3, "loss": 2.5, "learning_rate": 0.1})
        log({"step": 3, "eval_loss": 1.5})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(found.Tags()["scalars"]) == ["eval/loss", "train/learning_rate", "train/loss"]
    (event,) = found.Scalars("train/loss")
    assert (event.step, event.value) == (3, 2.5)


def test_wandb_gets_them_too_and_a_resumed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    logged: list[Any] = []

    def init(**given: Any) -> Any:
        made.append(given)
        return SimpleNamespace(id="abc", log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for start in (0, 3):
        with MORE["wandb"](tmp_path, start) as log:
            log({"step": start + 1, "loss": 2.5})
    assert [given["id"] for given in made] == [None, "abc"]
    assert logged == [(1, {"train/loss": 2.5}), (4, {"train/loss": 2.5})]


def test_the_losses_are_drawn(tmp_path: Path):
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}]
    (tmp_path / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    missing = invoke("plot", tmp_path / "nowhere")
    assert (missing.exit_code, "has no losses.jsonl" in missing.stderr) == (2, True)
    result = invoke("plot", tmp_path)
    assert result.exit_code == 0, result.output
    assert "<svg" in (tmp_path / "losses.svg").read_text()
    assert invoke("plot", tmp_path, tmp_path, "--out", tmp_path / "a.png").exit_code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "cannot be written" in invoke("plot", tmp_path, "--out", tmp_path / "a.xyz").stderr
