"""Files of tests have a budget of processor time; those with tests of each case grow with the cases."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import conftest
import pytest


def run_that_took(seconds: Mapping[str, float], *, all_cases: bool = False) -> tuple[int, list[str]]:
    """The exit status of a run without failures whose files took so long, and what it says about that."""
    lines: list[str] = []
    reports = [
        SimpleNamespace(nodeid=f"tests/{file}::test", user_properties=[(conftest.SECONDS, used)])
        for file, used in seconds.items()
    ]
    reporter: Any = SimpleNamespace(
        getreports=lambda _: reports,
        section=lambda _: None,
        write_line=lambda line, **colours: lines.append(line) if colours else None,
    )
    manager = SimpleNamespace(get_plugin=lambda _: reporter)
    config: Any = SimpleNamespace(getoption=lambda _: all_cases, pluginmanager=manager)
    session: Any = SimpleNamespace(config=config, exitstatus=pytest.ExitCode.OK)
    list(conftest.pytest_sessionfinish(session))
    conftest.pytest_terminal_summary(reporter, config)
    return session.exitstatus, lines


def test_a_file_above_its_budget_fails_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FUZZ_SECONDS", raising=False)
    status, lines = run_that_took({"test_slow.py": conftest.BUDGET + 1, "test_uniform.py": 3 * conftest.BUDGET})
    assert status == pytest.ExitCode.TESTS_FAILED
    assert [line.split()[0] for line in lines] == ["tests/test_slow.py"]
    assert run_that_took({"test_slow.py": conftest.BUDGET - 1}) == (pytest.ExitCode.OK, [])
    assert run_that_took({"test_slow.py": 3 * conftest.BUDGET}, all_cases=True) == (pytest.ExitCode.OK, [])
