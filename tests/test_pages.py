"""The pages of fresh memory: huge ones or small ones, whichever the machine gives faster at the moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from time import sleep

import numpy as np
import pytest

from easydel.weights import pages
from easydel.weights.arena import allocate, carve
from easydel.weights.pages import HUGE, HUGE_PAGE, SMALL, Pages

MiB = 1 << 20
pytestmark = pytest.mark.skipif(not pages.ADVISED, reason="this system gives no choice of pages")


@dataclass
class Machine:
    """Memory that takes `seconds` to touch a huge page, or the small pages in its place; counts what each kind got."""

    seconds: dict[int, float]
    got: dict[int, int] = field(default_factory=lambda: {HUGE: 0, SMALL: 0})
    _kind: int = HUGE

    def advise(self, memory: np.ndarray, kind: int, _: int) -> None:
        assert memory.ctypes.data % HUGE_PAGE == memory.nbytes % HUGE_PAGE == 0 < memory.nbytes
        self._kind = kind
        self.got[kind] += memory.nbytes

    def touch(self, _: np.ndarray) -> float:
        return self.seconds[self._kind]

    def give(self, size: int, kept: Pages | None = None) -> Pages:
        kept = kept or Pages()
        kept.touch, kept.advise = self.touch, self.advise
        kept.choose(allocate(size, SMALL), SMALL)
        return kept


@pytest.mark.parametrize(("huge", "small", "faster"), [(0.0004, 0.001, HUGE), (0.004, 0.001, SMALL)])
def test_memory_comes_in_the_pages_that_are_faster_and_looking_costs_little(huge: float, small: float, faster: int):
    machine = Machine({HUGE: huge, SMALL: small})
    machine.give(2048 * MiB)
    assert sum(machine.got.values()) == 2048 * MiB
    assert machine.got[faster] > 0.95 * 2048 * MiB
    least = 1024 * machine.seconds[faster]
    other = machine.got[HUGE + SMALL - faster] / HUGE_PAGE * max(huge, small)
    assert other < 0.1 * least + pages.TRIED * max(huge, small)


@pytest.mark.parametrize(("before", "after"), [((0.004, 0.001), (0.0004, 0.001)), ((0.0004, 0.001), (0.004, 0.001))])
def test_it_is_looked_at_again_as_the_load_goes_on(before: tuple[float, float], after: tuple[float, float]):
    kinds = (HUGE, SMALL)
    machine = Machine(dict(zip(kinds, before, strict=True)))
    kept = machine.give(1024 * MiB)
    later = Machine(dict(zip(kinds, after, strict=True)))
    later.give(2048 * MiB, kept)
    faster = min(kinds, key=later.seconds.__getitem__)
    assert later.got[faster] > 0.7 * 2048 * MiB


def test_one_slow_page_is_soon_forgotten():
    machine = Machine({HUGE: 0.0004, SMALL: 0.001})
    kept = machine.give(64 * MiB)
    Machine({HUGE: 0.02, SMALL: 0.02}).give(2 * MiB, kept)
    machine.got.clear()
    machine.got |= {HUGE: 0, SMALL: 0}
    machine.give(2048 * MiB, kept)
    assert machine.got[HUGE] > 0.7 * 2048 * MiB


def test_memory_of_odd_sizes_in_between_changes_no_page_in_part():
    machine = Machine({HUGE: 0.0004, SMALL: 0.001})
    kept = machine.give(64 * MiB)  # Machine demands whole huge pages
    for size in (2304, 64 * MiB, 3 * MiB + 4096, 64 * MiB):
        kept.choose(allocate(size, kept.usual), kept.usual)


def test_a_thread_goes_on_while_another_one_looks():
    looking, done = Event(), Event()

    def touch(_: np.ndarray) -> float:
        if looking.is_set():
            assert done.wait(10), "the other thread waits"
        looking.set()
        return 0.001

    kept = Pages(touch=touch, advise=lambda *_: None)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(kept.choose, allocate(32 * MiB, SMALL), SMALL)
        assert looking.wait(10)
        while not kept.seconds:  # until the first page has been counted
            sleep(0.001)
        kept.choose(allocate(32 * MiB, SMALL), SMALL)
        done.set()
        first.result()
    assert kept.seconds.keys() == {HUGE, SMALL}


@pytest.mark.parametrize(("seconds", "looks"), [(0.002, 0), (0.02, 1)])
def test_memory_that_took_long_to_be_filled_is_followed_by_a_look(seconds: float, looks: int):
    machine = Machine({HUGE: 0.0004, SMALL: 0.001})
    kept = machine.give(64 * MiB)
    machine.got |= {HUGE: 0, SMALL: 0}
    kept.filled(4 * MiB, 0.001)
    kept.filled(4 * MiB, seconds)
    kept.choose(allocate(4 * MiB, HUGE), HUGE)
    assert machine.got == {HUGE: looks * 4 * MiB, SMALL: 0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes and advice that the system is asked for from now on; it takes them all."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "system_madvise", lambda: lambda _, size, advice: calls.append((size, advice)) or 0)
    return calls


@pytest.mark.parametrize("kind", [HUGE, SMALL])
def test_advice_that_memory_has_is_not_given_again(kind: int, asked: list[tuple[int, int]]):
    memory = allocate(64 * MiB, kind)
    asked.clear()
    other, quick = HUGE + SMALL - kind, lambda _: 1.0
    Pages({kind: 1.0, other: 1e9}, touch=quick, usual=kind).choose(memory, kind)
    assert not asked, "each advice waits until no thread gets pages, and they wait for it"
    Pages({kind: 1e9, other: 1.0}, touch=quick, usual=other).choose(memory, kind)
    assert sum(size for size, advice in asked if advice == other) == 64 * MiB


def test_pages_are_asked_for_in_calls_that_are_soon_done(asked: list[tuple[int, int]]):
    memory = allocate(5 * MiB, SMALL)[100:]
    asked.clear()
    assert pages.given(memory)
    assert max(size for size, _ in asked) <= pages.AT_ONCE
    assert sum(size for size, _ in asked) == 5 * MiB  # from the start of the first page


@pytest.mark.parametrize("kind", [HUGE, SMALL])
def test_arrays_of_both_kinds_of_pages_are_memory_like_any_other(kind: int):
    a, b = carve([((5 * MiB + 3,), np.dtype(np.uint8)), ((2, 3), np.dtype(np.float32))], kind)
    Pages({kind: 1.0, HUGE + SMALL - kind: 2.0}).choose(a, kind)
    a[:], b[...] = 7, 1
    assert a.min() == 7
    assert b.shape == (2, 3)
    assert b.ctypes.data % 64 == 0


def test_pages_at_the_ends_of_memory_are_left_to_its_neighbours():
    machine, kept = Machine({HUGE: 1.0, SMALL: 2.0}), Pages()
    kept.touch, kept.advise = machine.touch, machine.advise
    whole = allocate(8 * MiB, HUGE)
    for memory, count in [(whole[1:-1], 2), (whole[: HUGE_PAGE - 1], 0), (whole[1 : HUGE_PAGE + 1], 0), (whole[:0], 0)]:
        machine.got |= {HUGE: 0, SMALL: 0}
        kept.choose(memory, SMALL)
        assert sum(machine.got.values()) == count * HUGE_PAGE
