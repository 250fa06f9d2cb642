"""Executes a plan: each device's part of each parameter is mapped, or read, cast and quantized into its own memory.

A few threads fill the parts, in arenas. On CPUs that memory then is the array: nothing is copied again.
At most `WINDOW` arenas are in progress, which bounds the data in flight to accelerators.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain

import jax
import numpy as np

from easydel.forms import SCALE, Form
from easydel.threads import thread_count
from easydel.weights.arena import ARENA_BYTES, carve, groups
from easydel.weights.arrays import Arrays, Arrived
from easydel.weights.expressions import Index, source_names
from easydel.weights.fill import ROWS_BYTES, SCRATCH_BYTES, Filler, Finite
from easydel.weights.pages import SMALL, Pages, given
from easydel.weights.parts import DevicePart, Key, key_of, parts_of
from easydel.weights.plan import Plan

MAX_THREADS = 16
REMOTE_THREADS = 8  # at least: threads wait for the network more than they compute
WINDOW = 2
PIECE_BYTES = 16 << 20  # one thread's share of a large part
PAGES = Pages()  # of all loads of this process
Placements = Mapping[str, jax.sharding.Sharding]


@dataclass
class Job:
    """Parts with the same rows, filled together: `fill(start, stop)` fills rows of the array, in any thread.

    `fill` is None if there is nothing to do.
    """

    parts: list[DevicePart]
    fill: Callable[[int, int], None] | None
    at_once: bool = False  # all rows by one thread

    @property
    def unplaced(self) -> list[DevicePart]:
        return [part for part in self.parts if part.values is None]

    def work(self, fresh: Sequence[DevicePart], pages: int, start: int, stop: int) -> None:
        """Fills rows of the array; `fresh` parts have memory that was never touched, advised `pages`."""
        assert self.fill is not None
        size = 0
        for part in fresh:
            memory = part.rows(*part.span) if self.at_once and part.index else part.rows(start, stop)
            PAGES.choose(memory, pages)
            size += memory.nbytes
            if PAGES.usual == SMALL:  # huge ones are few, and best touched just before they are written
                given(memory)
        started = time.thread_time()
        self.fill(start, stop)
        PAGES.filled(size, time.thread_time() - started)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the job needs."""
        return sum(part.nbytes for part in self.unplaced)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yields ranges of rows that are one thread's work each."""
        index = self.parts[0].index
        start, stop = (index[0].start, index[0].stop) if index else (0, 1)
        if self.at_once:
            yield start, stop
            return
        size = max(sum(part.nbytes for part in self.parts), 1)
        step = max(int((stop - start) * PIECE_BYTES / size), 1)
        yield from ((row, min(row + step, stop)) for row in range(start, stop, step))


@dataclass
class LoadReport:
    """The cost of a load. `bytes_read` were copied out of files, `bytes_mapped` are used where they lie.

    `peak_bytes` is the largest growth of the process's own memory (without mapped files), measured whenever an arena
    of parameters was full; None where the system does not report it. `hashes` says of each file that was streamed
    whether it has the hash that the Hub states, or why that is not known.
    """

    bytes_read: int = 0
    bytes_mapped: int = 0
    peak_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


def execute(
    plan: Plan,
    placements: Placements,
    dtypes: Mapping[str, np.dtype],
    *,
    rounded: Mapping[str, Form] | None = None,
    arrived: Arrived | None = None,
    advance: Callable[[float], None] | None = None,
    finite: Finite | None = "all",
) -> tuple[dict[str, jax.Array], LoadReport]:
    """Returns parameters by path. Those in `rounded` are quantized on the way, and get a `<path>_scale` besides.

    `placements` and `dtypes` are by path (and include the scales). `arrived` gets each array and returns the array to
    keep. `advance` is called whenever a share of the work is done, with that share. Raises CheckpointError if a file
    changed, a value does not fit, or weights are NaN or Inf: `finite` says whether "all" weights are checked, or only
    those that are "read", not mapped.
    """
    started, before = time.perf_counter(), own_memory()
    forms = rounded or {}
    filler = Filler(plan, finite)
    with closing(filler.reader):
        paths = in_order_of_files(plan) if filler.remote else plan.expressions
        jobs = [job for path in paths for job in _jobs(filler, path, placements, dtypes, forms)]
        report = LoadReport(seconds={"plan": time.perf_counter() - started})
        started = time.perf_counter()
        arrays = Arrays(_shapes(plan, forms), placements, _held(jobs), arrived)
        waiting: list[DevicePart] = []
        for parts, share in _filled(jobs, REMOTE_THREADS if filler.remote else 1):
            if arrays.on_host:  # made later: making arrays now would keep the reading threads from the interpreter
                waiting += parts
            else:
                arrays.add(parts)
            if before is not None:
                report.peak_bytes = max(report.peak_bytes or 0, (own_memory() or 0) - before)
            if advance is not None:
                advance(share)
        arrays.add(waiting)
    filler.check_finite()
    report.seconds["read"] = time.perf_counter() - started
    report.bytes_read, report.bytes_mapped = filler.bytes_read, filler.bytes_mapped
    return arrays.made, report


def in_order_of_files(plan: Plan) -> list[str]:
    """Returns the plan's paths in the order in which their bytes begin in the files, as far as it is known."""
    places = {name: place for place, name in enumerate(plan.tensors)}
    first: dict[str, int] = {}
    for name, readers in source_names(plan.expressions).items():
        for path in readers:
            first[path] = min(first.get(path, len(places)), places[name])
    return sorted(plan.expressions, key=lambda path: first.get(path, len(places)))


def _held(jobs: Iterable[Job]) -> Counter[str]:
    """Returns the number of parts that devices hold of each array."""
    return Counter(part.path for job in jobs for part in job.parts if part.devices)


def _shapes(plan: Plan, rounded: Mapping[str, Form]) -> dict[str, tuple[int, ...]]:
    codes = {path: form.codes_shape(plan.shapes[path]) for path, form in rounded.items()}
    scales = {f"{path}{SCALE}": form.scales_shape(plan.shapes[path]) for path, form in rounded.items()}
    return {**plan.shapes, **codes, **scales}


def memory_in_flight(sizes: Collection[int]) -> int:
    """Returns the bytes of memory that loading parameters of these sizes takes at most, if devices have their own."""
    arenas = (WINDOW + 2) * (ARENA_BYTES + max(sizes, default=0))  # being filled, and on their way to devices
    return min(arenas, sum(sizes)) + MAX_THREADS * (ROWS_BYTES + SCRATCH_BYTES)


def own_memory() -> int | None:
    """Bytes of this process that are in memory and not in files; None where the system does not report it."""
    try:  # not by Python's own file objects: each of their many calls would wait for the reading threads
        handle = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None
    try:
        resident, shared = os.read(handle, 256).split()[1:3]
    finally:
        os.close(handle)
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def _jobs(
    filler: Filler, path: str, placements: Placements, dtypes: Mapping[str, np.dtype], rounded: Mapping[str, Form]
) -> Iterator[Job]:
    shape = filler.plan.shapes[path]
    if (form := rounded.get(path)) is not None:
        scale = f"{path}{SCALE}"
        codes = parts_of(path, form.codes_shape(shape), placements[path], dtypes[path])
        scales = parts_of(scale, form.scales_shape(shape), placements[scale], dtypes[scale])
        yield from _rounding_jobs(filler, path, form, codes, scales)
        return
    parts = parts_of(path, shape, placements[path], dtypes[path])
    if len(shape) > 1 and (filler.remote or not filler.plan.is_transposed(path)):
        yield from _sharing_jobs(filler, path, parts)
        return
    yield from (_job(filler, part) for part in parts)


def _job(filler: Filler, part: DevicePart) -> Job:
    """Returns the job of a part that shares nothing: mapped if the file has just these bytes, else read."""
    part.values = filler.map(part.path, part.index, part.dtype)
    return _float_job(filler, part) if part.values is None else _mapped_job(filler, part)


def _mapped_job(filler: Filler, part: DevicePart) -> Job:
    if filler.finite != "all":
        return Job([part], None)
    return Job([part], lambda start, stop: filler.check_mapped(part.path, part.index, part.rows(start, stop)))


def _float_job(filler: Filler, part: DevicePart) -> Job:
    def fill(start: int, stop: int) -> None:
        index = (slice(start, stop), *part.index[1:]) if part.index else ()
        filler.fill(part.path, index, part.rows(start, stop))

    return Job([part], fill)


def _rounding_jobs(
    filler: Filler, path: str, form: Form, codes: list[DevicePart], scales: list[DevicePart]
) -> Iterator[Job]:
    """Yields jobs that quantize whole rows, whatever columns a device holds: scales must not depend on the sharding."""
    dims = len(filler.plan.shapes[path]) - 1
    by_rows: dict[Key, tuple[list[DevicePart], list[DevicePart]]] = {}
    for place, parts in enumerate((codes, scales)):
        for part in parts:
            by_rows.setdefault(key_of(part.index[:dims]), ([], []))[place].append(part)
    for key, found in by_rows.items():
        rows = tuple(slice(*range_) for range_ in key)

        def fill(
            start: int, stop: int, rows: Index = rows, found: tuple[list[DevicePart], list[DevicePart]] = found
        ) -> None:
            outs = [[(part.index[dims:], part.rows(start, stop)) for part in parts] for parts in found]
            filler.fill_rounded(path, form, (slice(start, stop), *rows[1:]), *outs)

        yield Job([*found[0], *found[1]], fill, at_once=filler.fetched_whole(path))


def _sharing_jobs(filler: Filler, path: str, parts: list[DevicePart]) -> Iterator[Job]:
    """Yields jobs in which parts with the same rows of the file share one read; a single part is read in place.

    Of a local file only whole rows are worth sharing, so that bytes between a process's own columns are not read.
    """
    remote, spread = filler.remote, filler.plan.is_transposed(path) or filler.fetched_whole(path)
    by_rows: dict[Key, list[DevicePart]] = {}
    for part in parts:
        by_rows.setdefault(key_of(part.index[: -2 if spread else -1]), []).append(part)
    for sharing in by_rows.values():
        whole = sum(part.shape[-1] for part in sharing) == filler.plan.shapes[path][-1]
        if not spread and (len(sharing) == 1 or not (remote or whole)):
            yield from (_job(filler, part) for part in sharing)
            continue

        def fill(start: int, stop: int, sharing: list[DevicePart] = sharing) -> None:
            if spread:  # each part has its own rows of the file
                filler.fill_shared(path, [(part.index, part.rows(*part.span)) for part in sharing])
            else:
                outs = [((slice(start, stop), *part.index[1:]), part.rows(start, stop)) for part in sharing]
                filler.fill_shared(path, outs)

        yield Job(sharing, fill, at_once=spread)


def _filled(jobs: Sequence[Job], least: int) -> Iterator[tuple[list[DevicePart], float]]:
    """Yields filled parts, arena by arena, with their share of the work; at least `least` threads fill them."""
    pool = ThreadPoolExecutor(max(thread_count(MAX_THREADS), least))
    pending: deque[tuple[list[DevicePart], list[Future[None]]]] = deque()
    total = max(sum(part.nbytes for job in jobs for part in job.parts), 1)
    try:
        for group in groups([job.nbytes for job in jobs]):
            pending.append(_start([jobs[item] for item in group], pool))
            if len(pending) > WINDOW:
                yield _finished(*pending.popleft(), total)
        while pending:
            yield _finished(*pending.popleft(), total)
    finally:
        pool.shutdown(cancel_futures=True)


def _start(jobs: Sequence[Job], pool: ThreadPoolExecutor) -> tuple[list[DevicePart], list[Future[None]]]:
    fresh = [job.unplaced for job in jobs]
    unplaced, usual = list(chain.from_iterable(fresh)), PAGES.usual
    for part, memory in zip(unplaced, carve([(part.shape, part.dtype) for part in unplaced], usual), strict=True):
        part.values = memory
    futures = [
        pool.submit(job.work, parts, usual, *piece)
        for job, parts in zip(jobs, fresh, strict=True)
        if job.fill is not None
        for piece in job.pieces()
    ]
    return [part for job in jobs for part in job.parts if part.devices], futures


def _finished(parts: list[DevicePart], futures: Sequence[Future[None]], total: int) -> tuple[list[DevicePart], float]:
    wait(futures, return_when=FIRST_EXCEPTION)  # one by one, each would wake this thread while others need its core
    for future in futures:
        if future.done():
            future.result()
    return parts, sum(part.nbytes for part in parts) / total
