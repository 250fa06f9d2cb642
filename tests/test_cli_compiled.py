"""`easydel plan --compile`: costs of programs for chips that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import invoke, invoke_json, make_model
from foretold import needs_libtpu

pytestmark = pytest.mark.usefixtures("flags_kept")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train", "8,128"), "--train without --compile"),
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
