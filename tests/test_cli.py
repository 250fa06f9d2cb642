"""The command as a whole: its help, its errors, and the meaning of its options."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, invoke_json, make_model, run

import easydel
from easydel.cli.options import GREEDY, Sampling, parse_mesh
from easydel.cli.tables import parse_size, size
from easydel.errors import ArgumentError
from easydel.families import REFUSED, all_families, all_wrappers

COMMANDS = ("generate", "chat", "inspect", "plan", "train", "eval", "plot", "verify", "export", "families", "doctor")


@pytest.fixture(scope="module")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truncated")
    make_model(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def test_help_names_every_command():
    shown = invoke("--help").stdout
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_tells_what_it_does(command: str):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_help_imports_no_jax():
    script = (
        "import sys; sys.argv = ['easydel', 'generate', '--help']\n"
        "from easydel.cli import main\n"
        "try: main()\n"
        "except SystemExit: print({'jax', 'flax', 'numpy', 'huggingface_hub'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_version_is_that_of_the_package():
    assert run("--version").stdout == f"easydel {easydel.__version__}\n"


def test_families_are_all_listed():
    listed = invoke_json("families")
    loaded = [*all_families(), *all_wrappers().values()]
    assert [row["model_type"] for row in listed] == sorted(family.model_type for family in loaded)
    assert all(row["description"] for row in listed)
    assert next(row for row in listed if row["model_type"] == "deepseek_v3")["gguf"] == ["deepseek2"]
    shown = invoke("families").stdout
    assert all(row["model_type"] in shown for row in listed)


def test_every_causal_language_model_of_transformers_is_listed_or_refused_with_a_reason():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    listed = invoke_json("families", "--all")
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= {row["model_type"] for row in listed}
    refused = {row["model_type"]: row["description"] for row in listed if row["refused"]}
    assert refused.keys() == REFUSED.keys()
    assert all(REFUSED[name].endswith(reason) for name, reason in refused.items())
    lost = len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & refused.keys())
    loaded = len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - lost
    assert f"{loaded} load and {lost} do not" in invoke("families", "--all").stdout


def test_doctor_tells_versions_devices_caches_and_formats(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("easydel.cli.doctor._version", lambda name: None if name == "torch" else version(name))
    found = {(row["topic"], row["name"]): row for row in invoke_json("doctor")}
    assert found["version", "jax"]["found"] == version("jax")
    assert found["version", "torch"]["advice"] == "for verify: pip install torch"
    assert found["device", "8 x cpu"]["advice"].startswith("pass auto_shard_params=True")
    assert found["format", "GGUF"]["found"] == "readable"
    assert {"memory", "cache", "hub"} <= {topic for topic, _ in found}
    assert "for verify: pip install torch" in invoke("doctor").stdout


def test_a_broken_file_is_a_message_on_stderr_and_exit_code_2(truncated: Path):
    done = run("generate", "Hello", "--model", truncated)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"easydel: {truncated / 'model.safetensors'}: ")


@pytest.mark.parametrize("arguments", [("--debug", "inspect"), ("inspect", "--debug")])
def test_debug_shows_where_an_error_comes_from(truncated: Path, arguments: tuple[str, ...]):
    done = run(*arguments, truncated)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "CheckpointError" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "no/such/path"], "no/such/path"),
        (["generate", "Hello", "--model", ".", "--mesh", "1,2"], "--mesh '1,2'"),
        (["generate", "Hello", "--model", ".", "--dtype", "int8"], "'int8' is no dtype"),
        (["generate", "Hello", "--model", ".", "--greedy", "--top-k", "5"], "--top-k and --greedy exclude each other"),
        (["plan", ".", "--device-memory", "lots"], "'lots' is no amount of memory"),
        (["plan", ".", "--optimizer", "sgd", "--int8"], "int8 parameters are not trained"),
        (["plan", ".", "--optimizer", "lion"], "'lion' is not one of"),
        (["inspect"], "Missing argument 'MODEL'"),
        (["generate", "Hello"], "Missing option '--model'"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(arguments: list[str], said: str):
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_file_that_cannot_be_written_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("easydel.hub.fetch", full)
    result = invoke("inspect", "model")
    assert (result.exit_code, result.stderr) == (2, "easydel: [Errno 28] No space left on device: 'out'\n")


def test_an_interrupt_is_quiet_and_exits_with_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("easydel.hub.fetch", interrupted)
    result = invoke("inspect", "model")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1,2,4,1", (1, 2, 4, 1)),
        ("1, -1, 2, 1", (1, -1, 2, 1)),
        ("fsdp=2,tp=4", (1, 2, 4, 1)),
        ("sp=-1", (1, 1, 1, -1)),
    ],
)
def test_mesh_is_sizes_or_names_with_sizes(text: str, sizes: tuple[int, ...]):
    assert parse_mesh(text) == sizes


@pytest.mark.parametrize(
    "text", ["", "8", "1,2,4", "1,2,4,1,1", "1,0,1,1", "1,-2,1,1", "-1,-1,1,1", "tp=2,tp=2", "ep=2", "1,tp=2", "tp=x"]
)
def test_another_mesh_is_refused_with_an_example(text: str):
    with pytest.raises(ArgumentError, match=r"1,2,4,1 or fsdp=2,tp=4"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16GiB", 16 << 30),
        ("80 GB", 80 * 10**9),
        ("1.5m", 3 << 19),
        ("17179869184", 16 << 30),
        ("2 kib", 2048),
        ("7B", 7),
    ],
)
def test_memory_is_read_in_its_units(text: str, count: int):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "16XB", "1e400", "nan", "1 2"])
def test_another_amount_of_memory_is_refused(text: str):
    with pytest.raises(ArgumentError, match="no amount of memory"):
        parse_size(text)


def test_sizes_are_shown_in_binary_units():
    assert [size(count) for count in (0, 1023, 1536, 5 << 30, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "1024.0 TiB",
    ]


def test_greedy_is_the_default_and_overrides_the_checkpoints_settings():
    assert Sampling().arguments() == {"max_new_tokens": 256, "num_beams": 1, **GREEDY}
    assert Sampling(repetition_penalty=1.3).arguments()["repetition_penalty"] == 1.3


def test_sampling_leaves_what_is_not_given_to_the_checkpoint():
    assert Sampling(sample=True).arguments() == {"max_new_tokens": 256, "num_beams": 1, "do_sample": True}
    assert Sampling(temperature=0.0, top_p=0.9).arguments() == Sampling().arguments()
    assert Sampling(temperature=0.0, sample=False).arguments() == Sampling().arguments()
    given = Sampling(top_p=0.9, seed=0, max_new_tokens=5).arguments()
    assert given == {"max_new_tokens": 5, "num_beams": 1, "do_sample": True, "top_p": 0.9, "seed": 0}
