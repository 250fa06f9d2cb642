"""`easydel plan --compile`: costs of programs for chips that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import invoke, invoke_json, make_model
from foretold import needs_libtpu

from easydel.aot.cost import NEEDED, Cost
from easydel.cli.compiled import Compiling
from easydel.cli.meshes import sensible
from easydel.cli.options import Loading

pytestmark = pytest.mark.usefixtures("flags_kept", "full_optimization")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train", "8,128"), "--train without --compile"),
        (("--compare",), "--compare without --compile"),
        (("--compile", "v5e:2x2"), "--compile needs --train BATCH,LENGTH or --generate"),
        (("--compile", "v5e:2x2", "--train", "8,128", "--generate", "8,128"), "--compile needs --train"),
        (("--compile", "v5e:2x2", "--generate", "8x128"), "'8x128' is no BATCH,LENGTH"),
        (("--compile", "v5e:2x2", "--generate", "8,128", "--remat", "everything"), "--remat is for --train"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: tuple[str, ...], message: str):
    done = invoke("plan", "nowhere", *flags)
    assert done.exit_code == 2
    assert message in done.stderr


@needs_libtpu
def test_a_decoding_step_tells_memory_bytes_sent_and_the_least_time(tiny: Path):
    command = ("plan", tiny, "--compile", "v5e:2x2", "--mesh", "fsdp=2,tp=2", "--generate", "2,128")
    facts = invoke_json(*command)
    assert facts["run"] is False
    assert (facts["chips"], facts["program"], facts["fits"]) == (4, "generate", True)
    assert facts["chip_bytes"]["parameters"] == invoke_json(*command[:2], *command[4:6])["device_bytes"]["parameters"]
    assert facts["chip_bytes"]["total"] < facts["chip_memory"]
    assert {"fsdp", "tp"} <= {axis for row in facts["sent"] for axis in row["axes"]}
    assert facts["limited_by"] == max(facts["bound_seconds"], key=facts["bound_seconds"].get)
    assert facts["tokens_per_second"] == 2 / max(facts["bound_seconds"].values())
    assert "compiled for v5e:2x2, not run" in invoke(*command).stdout


@needs_libtpu
def test_what_does_not_fit_says_how_much_it_needs(tiny: Path):
    facts = invoke_json("plan", tiny, "--compile", "v5e:2x2", "--mesh", "1,1,1,1", "--generate", "1024,100000")
    assert facts["fits"] is False
    assert facts["chip_bytes"]["needed"] > facts["chip_memory"]


@needs_libtpu
def test_a_training_step_holds_moments_too(tiny: Path):
    facts = invoke_json("plan", tiny, "--compile", "v5e:2x2", "--train", "4,32", "--remat", "everything")
    held = facts["chip_bytes"]
    assert held["moments"] == pytest.approx(2 * held["parameters"], rel=0.01)
    assert facts["tokens_per_second"] == 4 * 32 / max(facts["bound_seconds"].values())


def test_meshes_that_make_sense_split_batches_or_slots_over_what_tp_leaves():
    to_train = list(sensible(16, 4, training=True))
    assert [placed.flags for placed in to_train] == [
        "--mesh 1,4,4,1 --split-residual",
        "--mesh 1,2,8,1 --split-residual",
    ]
    to_generate = {placed.dims for placed in sensible(4, 1, training=False)}
    assert to_generate == {(1, 4, 1, 1), (1, 1, 1, 4), (1, 2, 2, 1), (1, 1, 2, 2), (1, 1, 4, 1)}


@needs_libtpu
def test_other_meshes_are_compared_and_those_that_split_a_head_left_out(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Without compiling: the least time is 1 second times the size of fsdp, and tp=2 needs too much memory."""

    def told(model: Any, compiling: Compiling) -> Cost:
        sizes = model.policy.mesh.shape
        return Cost({NEEDED if sizes["tp"] == 2 else "parameters": 5}, 197e12 * sizes["fsdp"], 1, [])

    monkeypatch.setattr("easydel.cli.compiled.costs", told)
    command = ("plan", tiny, "--compile", "v5e:2x4", "--generate", "2,128", "--compare")
    facts = invoke_json(*command)
    assert facts["flags"] == "--mesh 1,8,1,1"
    assert facts["best"] == "--mesh 1,1,1,8"
    tried = {one["flags"].removeprefix("--mesh "): one["fits"] for one in facts["compared"]}
    assert tried == {"1,8,1,1": True, "1,1,1,8": True, "1,4,2,1": False, "1,1,2,4": False}
    assert "the best first" in invoke(*command).stdout
    facts = invoke_json(*command, "--replicate-kv")
    assert facts["best"] == "--mesh 1,1,1,8 --replicate-kv"
    assert all(one["flags"].endswith(" --replicate-kv") for one in facts["compared"])


def test_activations_between_layers_are_split_on_demand():
    assert Loading(split_residual=True).axes().activation_hidden_axis == "tp"
