"""The collector of garbage, put off while a load is planned."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from easydel.garbage import collected_later


@pytest.fixture(params=[True, False], ids=["enabled", "disabled"])
def enabled(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_the_last_of_several_threads_ends_it(enabled: bool):
    first, second = collected_later(), collected_later()
    for step, done in (
        (first.__enter__, False),
        (second.__enter__, False),
        (lambda: first.__exit__(None, None, None), False),
    ):
        step()
        assert gc.isenabled() == done
    second.__exit__(None, None, None)
    assert gc.isenabled() == enabled


def test_it_is_off_meanwhile_and_then_as_before_whatever_happens(enabled: bool):
    @collected_later()
    def work(fail: bool) -> bool:
        if fail:
            raise ValueError("no luck")
        return gc.isenabled()

    with collected_later():
        assert not work(fail=False)  # one within another
        assert not gc.isenabled()
    assert gc.isenabled() == enabled
    with pytest.raises(ValueError, match="no luck"):
        work(fail=True)
    assert gc.isenabled() == enabled
