"""Runs the whole suite on eight virtual CPU devices; JAX reads the setting when it starts its first backend."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from loaded import Loaded

DEVICES = "--xla_force_host_platform_device_count"

# Tests compile thousands of programs and run each a few times: kernels that are made plainly and in one piece take 0.6
# of the time, and half of that where LLVM optimizes less. Workers inherit this, and so do commands that tests start.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

STARTED = pytest.StashKey[float]()
LONG = 60  # processor seconds of a run that is worth an account
BUDGET = 240  # processor seconds of a file: more than twice what the costliest takes on a quiet machine
GROWING = ("test_families.py", "test_uniform.py")  # these have tests for each case, of which each family brings some


def known_to_xla(flags: str) -> bool:
    """Asks a process of its own, since XLA ends a process that has a flag which this release does not know."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(start, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True).returncode == 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # a run shall not depend on the one before
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's: for tiny models, threads take longer to wake than to compute
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
    if known_to_xla(QUICK):
        os.environ["XLA_FLAGS"] += f" {QUICK}"


SECONDS = "processor seconds"


def processor_seconds() -> float:
    """What this process and those that it waited for have used: unlike wall time, the same on a busy machine."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported and collected stays, and need not be looked through again and again


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[STARTED] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.when == "teardown":
        report.user_properties.append((SECONDS, processor_seconds() - item.stash[STARTED]))
    return report


def spent(terminalreporter: Any) -> Counter[str]:
    """Processor seconds of each file."""
    seconds: Counter[str] = Counter()
    for report in terminalreporter.getreports(""):
        seconds[report.nodeid.partition("::")[0]] += dict(report.user_properties).get(SECONDS, 0)
    return seconds


def too_costly(config: pytest.Config, seconds: Counter[str]) -> list[str]:
    """A line for each file that takes more than its budget, if it is run as CI runs it."""
    if config.getoption("all_cases") or "FUZZ_SECONDS" in os.environ:
        return []
    return [
        f"{file} took {used:.0f} processor seconds, {BUDGET} are allowed: share programs or models between its tests, "
        "prove numbers on smaller ones, or split the file"
        for file, used in seconds.items()
        if used > BUDGET and not file.endswith(GROWING)
    ]


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in a worker
    if reporter and session.exitstatus == pytest.ExitCode.OK and too_costly(session.config, spent(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The files that cost most, so that a slow one is seen when it comes in."""
    seconds = spent(terminalreporter)
    if seconds.total() > LONG:
        terminalreporter.section(f"{seconds.total():.0f} processor seconds")
        for file, used in seconds.most_common(20):
            terminalreporter.write_line(f"{used:6.1f} {file}")
    for line in too_costly(config, seconds):
        terminalreporter.write_line(line, red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-cases", action="store_true", help="run what takes the covering cases on every case")


@pytest.fixture(scope="module")
def flags_kept() -> Iterator[None]:
    """Gives back the flags that compiling for TPUs hides: processes started later shall compile as this one does."""
    before = os.environ["XLA_FLAGS"]
    yield
    os.environ["XLA_FLAGS"] = before


@pytest.fixture
def full_optimization() -> Iterator[None]:
    """Programs are compiled as users have them: real models', and those of which memory and traffic are counted."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """The model of the case that a test is parametrized with; a module may `make` its references itself."""
    import jax
    from loaded import load
    from parity import make_reference

    make = getattr(request.module, "make", make_reference)
    yield load(request.param, tmp_path_factory.mktemp("model"), make)
    jax.clear_caches()  # hundreds of compiled programs would fill the memory
