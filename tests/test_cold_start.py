"""Programs compiled while weights load, and kept for the next process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import make_model

from easydel import AutoEasyDeLModelForCausalLM
from easydel.compilation import use_compilation_cache
from easydel.generate import compile_ahead
from easydel.generate.precompile import finish_compiling

COMPILED = "/jax/core/compile/backend_compile_duration"
PROMPT = np.array([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture
def compilations() -> Any:
    """Counts the programs that XLA compiles from here on."""
    seen: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("arguments", "loading"),
    [
        ({}, {}),
        ({"streamer": lambda tokens: None}, {}),
        ({"do_sample": True, "top_k": 5}, {"auto_shard_params": True, "sharding_axis_dims": (1, 2, 2, 2)}),
        ({}, {"load_in_8bit": True, "scan_layers": True}),
    ],
)
def test_nothing_is_left_to_compile_after_compiling_ahead(
    tiny: Path, arguments: dict[str, Any], loading: dict[str, Any], compilations: list[float]
):
    ahead = compile_ahead(PROMPT, max_new_tokens=4, **arguments)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tiny, while_loading=ahead, **loading)
    np.asarray(model.generate(PROMPT, max_new_tokens=4, seed=3, **arguments).sequences)  # eager operations compile too
    compilations.clear()
    model.generate(PROMPT[:, :3], max_new_tokens=4, seed=4, **arguments)
    again = len(compilations)
    fresh, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tiny, while_loading=ahead, **loading)
    finish_compiling(fresh)
    compilations.clear()
    fresh.generate(PROMPT, max_new_tokens=4, **arguments)
    assert len(compilations) == again == 0


def test_what_is_still_being_compiled_is_waited_for_rather_than_compiled_twice(tiny: Path, compilations: list[float]):
    ahead = compile_ahead(PROMPT, max_new_tokens=4)
    AutoEasyDeLModelForCausalLM.from_pretrained(tiny)[0].generate(PROMPT, max_new_tokens=4)  # eager operations
    compilations.clear()
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tiny, while_loading=ahead)
    model.generate(PROMPT, max_new_tokens=4)
    assert len(compilations) == 3  # prefill, grow, loop


def test_without_compiling_ahead_the_first_call_compiles(tiny: Path, compilations: list[float]):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tiny)
    compilations.clear()
    model.generate(PROMPT, max_new_tokens=4)
    assert len(compilations) >= 3


def test_what_compiles_ahead_gets_shapes_with_shardings(tiny: Path):
    seen: list[Any] = []
    _, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        tiny, auto_shard_params=True, while_loading=lambda model, shapes: seen.append(shapes)
    )
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), params)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), seen[0])


def test_an_error_in_what_runs_meanwhile_is_raised(tiny: Path):
    def fail(model: Any, shapes: Any) -> None:
        raise RuntimeError("of the caller's own")

    with pytest.raises(RuntimeError, match="of the caller's own"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tiny, while_loading=fail)


PROGRAM = """
import sys, jax, numpy as np
from easydel import AutoEasyDeLModelForCausalLM
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(sys.argv[1], **eval(sys.argv[2]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
model.generate(np.array([[5, 6, 7]]), max_new_tokens=2)
print(len(hits))
"""


def cached_programs(tiny: Path, cache: Path, arguments: str, **environment: str) -> int:
    """How many programs a new process found in the cache."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "1", **environment}
    command = [sys.executable, "-c", PROGRAM, str(tiny), arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout)


def test_the_next_process_finds_the_programs_of_the_last(tiny: Path, tmp_path: Path):
    assert cached_programs(tiny, tmp_path, "{}") == 0
    assert cached_programs(tiny, tmp_path, "{}") >= 3  # prefill, grow, loop
    place = tmp_path / "easydel" / "xla"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    before = sorted(place.iterdir())
    assert cached_programs(tiny, tmp_path, "{'compilation_cache': False}") == 0
    other = tmp_path / "other"
    cached_programs(tiny, tmp_path, "{}", JAX_COMPILATION_CACHE_DIR=str(other))
    assert any(other.iterdir()), "a directory that JAX was told of stays the one"
    assert sorted(place.iterdir()) == before


def test_a_directory_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "easydel" / "xla"
    place.mkdir(parents=True)
    place.chmod(0o777)
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        assert use_compilation_cache() is None
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert use_compilation_cache() is None, "no directory can be made in a file"
        assert getattr(jax.config, "jax_compilation_cache_dir") is None  # noqa: B009
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
