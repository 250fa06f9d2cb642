"""Executing a plan: each device's part of each parameter is mapped, or read, cast and quantized into its own memory.

Parts are filled by a few threads, in arenas of huge pages. On CPUs an array then is that memory: nothing is copied
again. At most `WINDOW` arenas are under way, which bounds what is in flight to accelerators.
"""

from __future__ import annotations

import mmap
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from easydel.threads import thread_count
from easydel.weights.arena import carve, groups
from easydel.weights.expressions import Index
from easydel.weights.fill import Filler, Finite
from easydel.weights.plan import Plan

MAX_THREADS = 16
REMOTE_THREADS = 8  # at least: they wait for the network more than they compute
WINDOW = 2
PIECE_BYTES = 16 << 20  # one thread's share of a large part
Placements = Mapping[str, jax.sharding.Sharding]
Arrived = Callable[[str, jax.Array], jax.Array]
Key = tuple[tuple[int, int], ...]


@dataclass
class Part:
    """What some devices hold of an array. `values` is None until memory is assigned; a mapped part has it at once."""

    path: str
    index: Index
    devices: Sequence[Any]
    dtype: np.dtype
    values: np.ndarray | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.index)

    def taken(self) -> np.ndarray:
        """The memory, which is not kept: arrays keep it alive that are the memory, and else it can go."""
        assert self.values is not None
        values, self.values = self.values, None
        return values

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The memory of rows `start` to `stop` of the array."""
        assert self.values is not None
        return self.values[start - self.index[0].start : stop - self.index[0].start] if self.index else self.values


@dataclass
class Job:
    """Parts with the same rows, filled together: `fill(start, stop)` does rows of the array, in any thread.

    None where there is nothing to do.
    """

    parts: list[Part]
    fill: Callable[[int, int], None] | None
    at_once: bool = False  # all rows by one thread

    @property
    def unplaced(self) -> list[Part]:
        return [part for part in self.parts if part.values is None]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it needs."""
        return sum(prod(part.shape) * part.dtype.itemsize for part in self.unplaced)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are each one thread's work."""
        index = self.parts[0].index
        start, stop = (index[0].start, index[0].stop) if index else (0, 1)
        if self.at_once:
            yield start, stop
            return
        size = max(sum(prod(part.shape) * part.dtype.itemsize for part in self.parts), 1)
        step = max(int((stop - start) * PIECE_BYTES / size), 1)
        yield from ((row, min(row + step, stop)) for row in range(start, stop, step))


@dataclass
class LoadReport:
    """What a load cost. `bytes_read` were copied out of files, `bytes_mapped` are used where they lie.

    `peak_bytes` is by how much the process's own memory (without mapped files) had grown at most, looked at whenever
    an arena of parameters was full; None where the system does not tell.
    """

    bytes_read: int = 0
    bytes_mapped: int = 0
    peak_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def load(
    plan: Plan,
    placements: Placements,
    dtypes: Mapping[str, np.dtype],
    *,
    int8: Collection[str] = (),
    arrived: Arrived | None = None,
    advance: Callable[[int], None] | None = None,
    finite: Finite | None = "all",
) -> tuple[dict[str, jax.Array], LoadReport]:
    """Parameters by path. Those in `int8` are quantized on the way and bring a `<path>_scale` along.

    `placements` and `dtypes` are by path (and have the scales too). `arrived` gets each array and returns the one to
    keep. `advance` is told of the bytes done. Raises CheckpointError if a file changed, a value does not fit, or
    weights are NaN or Inf: `finite` says whether "all" are checked, or only those that are "read", not mapped.
    """
    started, before = time.perf_counter(), own_memory()
    params: dict[str, jax.Array] = {}
    with closing(Filler(plan, finite)) as filler:
        jobs = [job for path in plan.expressions for job in _jobs(filler, path, placements, dtypes, int8)]
        missing = Counter(part.path for job in jobs for part in job.parts if part.devices)
        report = LoadReport(seconds={"plan": time.perf_counter() - started})
        started = time.perf_counter()
        shards: dict[str, list[jax.Array]] = {}
        for parts in _filled(jobs, REMOTE_THREADS if filler.remote else 1):
            for path, found in groupby(sorted(parts, key=lambda part: part.path), lambda part: part.path):
                array = _placed(_shape(plan, path), placements[path], list(found), missing, shards)
                if array is None:
                    continue
                params[path] = array if arrived is None else arrived(path, array)
                if advance is not None:
                    advance(array.nbytes)
            if before is not None:
                report.peak_bytes = max(report.peak_bytes or 0, (own_memory() or 0) - before)
    filler.check_finite()
    report.seconds["read"] = time.perf_counter() - started
    report.bytes_read, report.bytes_mapped = filler.bytes_read, filler.bytes_mapped
    return params, report


def own_memory() -> int | None:
    """Bytes of this process that are in memory and not of files; None where the system does not tell."""
    try:
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    except OSError:
        return None
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def _shape(plan: Plan, path: str) -> tuple[int, ...]:
    return plan.shapes[path] if path in plan.shapes else plan.shapes[path.removesuffix("_scale")][:-1]


def _jobs(
    filler: Filler, path: str, placements: Placements, dtypes: Mapping[str, np.dtype], int8: Collection[str]
) -> Iterator[Job]:
    parts = _parts(path, filler.plan.shapes[path], placements[path], dtypes[path])
    if path in int8:
        scale = f"{path}_scale"
        scales = _parts(scale, filler.plan.shapes[path][:-1], placements[scale], dtypes[scale])
        yield from _int8_jobs(filler, path, parts, scales)
        return
    if len(filler.plan.shapes[path]) > 1 and (filler.remote or not filler.transposed(path)):
        yield from _sharing_jobs(filler, path, parts)
        return
    yield from (_job(filler, part) for part in parts)


def _job(filler: Filler, part: Part) -> Job:
    """A part of its own: mapped, if the file has it just as it is wanted."""
    part.values = filler.map(part.path, part.index, part.dtype)
    return _float_job(filler, part) if part.values is None else _mapped_job(filler, part)


def _mapped_job(filler: Filler, part: Part) -> Job:
    if filler.finite != "all":
        return Job([part], None)
    return Job([part], lambda start, stop: filler.check_mapped(part.path, part.index, part.rows(start, stop)))


def _float_job(filler: Filler, part: Part) -> Job:
    def fill(start: int, stop: int) -> None:
        index = (slice(start, stop), *part.index[1:]) if part.index else ()
        filler.fill(part.path, index, part.rows(start, stop))

    return Job([part], fill)


def _int8_jobs(filler: Filler, path: str, parts: list[Part], scales: list[Part]) -> Iterator[Job]:
    """Quantized over whole rows, whichever columns a device holds: scales must not depend on the sharding."""
    by_rows: dict[Key, tuple[list[Part], list[Part]]] = {}
    for part in parts:
        by_rows.setdefault(_key(part.index[:-1]), ([], []))[0].append(part)
    for part in scales:
        by_rows.setdefault(_key(part.index), ([], []))[1].append(part)
    for key, (columns, sharing) in by_rows.items():
        rows = tuple(slice(*range_) for range_ in key)
        scale = sharing[0] if sharing else Part(f"{path}_scale", rows, (), np.dtype(np.float32))

        def fill(start: int, stop: int, rows: Index = rows, columns: list[Part] = columns, scale: Part = scale) -> None:
            outs = [(part.index[-1], part.rows(start, stop)) for part in columns]
            filler.fill_int8(path, (slice(start, stop), *rows[1:]), outs, scale.rows(start, stop))

        yield Job([*columns, scale], fill, at_once=filler.remote and filler.transposed(path))


def _sharing_jobs(filler: Filler, path: str, parts: list[Part]) -> Iterator[Job]:
    """Parts with the same rows of the file share what is read; one alone is read where it belongs.

    Of a local file only whole rows are worth sharing: what lies between a process's own columns is not to be read.
    """
    transposed, remote = filler.transposed(path), filler.remote
    by_rows: dict[Key, list[Part]] = {}
    for part in parts:
        by_rows.setdefault(_key(part.index[: -2 if transposed else -1]), []).append(part)
    for sharing in by_rows.values():
        whole = sum(part.shape[-1] for part in sharing) == filler.plan.shapes[path][-1]
        if not transposed and (len(sharing) == 1 or not (remote or whole)):
            yield from (_job(filler, part) for part in sharing)
            continue

        def fill(start: int, stop: int, sharing: list[Part] = sharing) -> None:
            if transposed:  # each part has rows of its own
                filler.fill_shared(path, [(part.index, part.rows(*_span(part))) for part in sharing])
            else:
                outs = [((slice(start, stop), *part.index[1:]), part.rows(start, stop)) for part in sharing]
                filler.fill_shared(path, outs)

        yield Job(sharing, fill, at_once=transposed)


def _span(part: Part) -> tuple[int, int]:
    return part.index[0].start, part.index[0].stop


def _parts(path: str, shape: tuple[int, ...], placement: jax.sharding.Sharding, dtype: np.dtype) -> list[Part]:
    """The distinct parts of an array on this process's devices, in the order of their first element."""
    return [Part(path, index, devices, dtype) for index, devices in _split(shape, placement)]


@lru_cache
def _split(shape: tuple[int, ...], placement: jax.sharding.Sharding) -> list[tuple[Index, list[Any]]]:
    devices: dict[Key, list[Any]] = {}
    for device, index in placement.addressable_devices_indices_map(shape).items():
        devices.setdefault(_key(_full(index or (), shape)), []).append(device)
    return [(tuple(slice(*range_) for range_ in key), devices[key]) for key in sorted(devices)]


def _full(index: Index, shape: tuple[int, ...]) -> Index:
    return tuple(slice(*part.indices(dim)[:2]) for part, dim in zip(index, shape, strict=True))


def _key(index: Index) -> Key:
    return tuple((part.start, part.stop) for part in index)


def _filled(jobs: Sequence[Job], least: int) -> Iterator[list[Part]]:
    """Parts with their values, arena by arena, by at `least` so many threads."""
    pool = ThreadPoolExecutor(max(thread_count(MAX_THREADS), least))
    pending: deque[tuple[list[Part], list[Future[None]]]] = deque()
    try:
        for group in groups([job.nbytes for job in jobs]):
            pending.append(_start([jobs[item] for item in group], pool))
            if len(pending) > WINDOW:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _start(jobs: Sequence[Job], pool: ThreadPoolExecutor) -> tuple[list[Part], list[Future[None]]]:
    unplaced = [part for job in jobs for part in job.unplaced]
    for part, memory in zip(unplaced, carve([(part.shape, part.dtype) for part in unplaced]), strict=True):
        part.values = memory
    futures = [pool.submit(job.fill, *piece) for job in jobs if job.fill is not None for piece in job.pieces()]
    return [part for job in jobs for part in job.parts if part.devices], futures


def _finished(parts: list[Part], futures: Sequence[Future[None]]) -> list[Part]:
    for future in futures:
        future.result()
    return parts


def _placed(
    shape: tuple[int, ...],
    placement: jax.sharding.Sharding,
    parts: Sequence[Part],
    missing: Counter[str],
    shards: dict[str, list[jax.Array]],
) -> jax.Array | None:
    """The array of which `parts` are the last that were `missing`; None, and a note in `shards`, if more will come.

    Making an array for each device first takes several times as long as making the whole one, but what is large
    need not be in this process's own memory as a whole.
    """
    path = parts[0].path
    whole = len(parts) == missing[path] and path not in shards
    missing[path] -= len(parts)
    memory = [(part, part.taken()) for part in parts]
    if whole:
        by_key = {_key(part.index): values for part, values in memory}

        def find(index: Index | None) -> np.ndarray:
            return by_key[_key(_full(index or (), shape))]

        return jax.make_array_from_callback(shape, placement, find, dtype=parts[0].dtype)
    pairs = [(values, device) for part, values in memory for device in part.devices]
    shards.setdefault(path, []).extend(jax.device_put([values for values, _ in pairs], [device for _, device in pairs]))
    if missing[path]:
        return None
    return jax.make_array_from_single_device_arrays(shape, placement, shards.pop(path))
