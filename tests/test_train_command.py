"""`easydel train` writes models that load, and reports impossible requests in a line on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import invoke, make_model

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.lora import load_adapters
from easydel.train import loss_sums

TEXT = "the quick fox jumps over the lazy dog and the dog sleeps " * 40
SHORT = ("--steps", 3, "--batch", 2, "--length", 16, "--learning-rate", 0.01, "--mesh", "1,1,1,1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


def losses_of(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def loss_of(model: Any, directory: Path) -> float:
    ids = np.array([load_tokenizer(directory).encode(TEXT)[:64]])
    loss = jax.jit(loss_sums, static_argnums=0)(model, model.params, {"input_ids": ids})
    return float(loss.nll / loss.tokens)


def test_it_writes_a_model_that_has_learned_the_text_and_goes_on_when_called_again(tiny: Path, tmp_path: Path):
    arguments = ("train", tiny, tiny / "text.txt", "--out", tmp_path, *SHORT, "--save-every", 2)
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    losses = losses_of(tmp_path)
    assert len(losses) == 3
    assert f"3 steps, loss {losses[0]:.4f} -> {losses[-1]:.4f}, wrote {tmp_path / 'model'}" in result.stderr
    before, after = (AutoEasyDeLModelForCausalLM.from_pretrained(path)[0] for path in (tiny, tmp_path / "model"))
    assert loss_of(after, tmp_path / "model") < loss_of(before, tiny) - 0.2
    assert invoke(*arguments).exit_code == 0
    assert losses_of(tmp_path) == losses
    other = invoke(*arguments, "--warmup", 1)
    assert other.exit_code == 2
    assert "warmup was 0, is 1" in other.stderr


def test_a_finished_run_without_its_log_finishes_again_and_says_what_it_knows(tiny: Path, tmp_path: Path):
    arguments = ("train", tiny, tiny / "text.txt", "--out", tmp_path, *SHORT)
    assert invoke(*arguments).exit_code == 0
    log = tmp_path / "losses.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.unlink()
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert f"3 steps, no losses in losses.jsonl, wrote {tmp_path / 'model'}" in result.stderr
    log.write_text("".join(lines[1:]) + "\xff{\n[]\n" + '{"step": "1", "loss": 0.5}\n' + lines[0][:9])
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    first, last = losses_of(tmp_path)
    assert f"3 steps, loss {first:.4f} -> {last:.4f} in steps 2 to 3, wrote" in result.stderr
    assert log.read_text() == "".join(lines[1:])


def test_documents_are_separated_by_the_tokenizers_end_of_sequence(tiny: Path, tmp_path: Path):
    lines = [json.dumps({"text": text}) for text in ("the dog sleeps", "the quick fox jumps over the dog")] * 30
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    counts = []
    for options in ((), ("--separate-documents",)):
        out = tmp_path / f"out{len(options)}"
        result = invoke("train", tiny, tmp_path / "text.jsonl", "--out", out, *SHORT, "--steps", 1, *options)
        assert result.exit_code == 0, result.output
        counts.append(json.loads((out / "losses.jsonl").read_text())["tokens"])
    assert counts[0] == 2 * 15
    assert 0 < counts[1] < counts[0], "nothing predicts the first token of a document"


def test_adapters_on_an_int8_base_are_written_alone(tiny: Path, tmp_path: Path):
    options = ("--int8", "--lora-rank", 4, "--lora-targets", "q_proj,mlp.down_proj", "--remat", "everything")
    result = invoke("train", tiny, tiny / "text.txt", "--out", tmp_path, *SHORT, *options, "--scan-layers")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 4, ["down_proj", "q_proj"])
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tiny, load_in_8bit=True)
    before = loss_of(model, tiny)
    load_adapters(model, tmp_path / "adapter")
    assert loss_of(model, tiny) < before
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--length", 5000), "not enough for one piece of 5000"),
        (("--int8",), "int8 parameters cannot be trained; add --lora-rank"),
        (("--lora-alpha", 3), "--lora-alpha without --lora-rank"),
        (("--learning-rate", 0), "--learning-rate 0.0 is not positive"),
        (("--remat", "some"), "--remat 'some' is not known; use True, or save_attention, save_mlp"),
        (("--lora-rank", 2, "--lora-targets", "nothing"), "['nothing'] name no Linear"),
        (("--batch", 3, "--accumulate", 2), "--batch 3 cannot be cut"),
    ],
)
def test_what_cannot_be_done_is_a_line_on_stderr_and_exit_code_2(
    tiny: Path, tmp_path: Path, options: tuple[Any, ...], message: str
):
    result = invoke("train", tiny, tiny / "text.txt", "--out", tmp_path / "out", *SHORT, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_options_can_stand_in_a_file_and_the_command_line_overrides_it(tiny: Path, tmp_path: Path):
    """Checked by what is wrong with them: nothing is trained."""
    options = tmp_path / "options.yaml"
    content = f"model: {tiny}\ntext: {tiny / 'text.txt'}\nout: {tmp_path / 'out'}\nlearning-rate: 1e-3\nlora_rank: 2\n"
    options.write_text(content + "lora_targets: [q_proj, nothing]\nint8: true\nlength: 5000\n")
    assert "not enough for one piece of 5000" in invoke("train", options).stderr
    told = invoke("train", options, "--length", 16)
    assert "['nothing'] name no Linear" in told.stderr
    assert invoke("train", options, "--learning-rate", 0).stderr == "easydel: --learning-rate 0.0 is not positive\n"
    options.write_text(content + "int8: true\nlength: 16\nsteps: 1\nbatch: 1\nmesh: 1,1,1,1\n")
    assert invoke("train", options).exit_code == 0
    assert len(losses_of(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text: a.txt\n", "names no model"),
        ("model: a\ntxt: b\n", "unknown keys ['txt']; it may have accumulate, batch,"),
        ("- model\n", "is no mapping of options to values"),
        ("model: [\n", "cannot be read"),
        ("model: a\nsteps: {a: 1}\n", "steps is {'a': 1}, expected one value"),
    ],
)
def test_a_file_of_options_that_makes_no_sense_is_refused_in_a_line(tmp_path: Path, content: str, message: str):
    options = tmp_path / "options.yaml"
    options.write_text(content)
    result = invoke("train", options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"easydel: {options}: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_text_that_is_not_there_is_named(tiny: Path, tmp_path: Path):
    result = invoke("train", tiny, tmp_path / "missing.txt", "--out", tmp_path, *SHORT)
    assert result.exit_code == 2
    assert f"easydel: {tmp_path / 'missing.txt'}: cannot be read" in result.stderr
