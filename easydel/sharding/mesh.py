"""The grid of devices that everything is split over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.extend.backend import backends
from jax.sharding import AxisType, Mesh

from easydel.errors import ShardingError
from easydel.sharding.axes import AXES
from easydel.sharding.problems import refuse


def make_mesh(dims: Sequence[int] = (1, -1, 1, 1), names: Sequence[str] = AXES, backend: str | None = None) -> Mesh:
    """Returns a mesh with axes `names` of sizes `dims` over the devices of `backend`; one -1 takes the rest.

    Sizes whose product is less than the number of devices use the first of them, so (1, 1, 1, 1) works everywhere.
    All axes are `AxisType.Auto`: XLA propagates shardings. Raises ShardingError, with a proposal, if the sizes do not
    fit the names or the devices, or if there is no such backend.
    """
    dims, names = tuple(dims), tuple(names)
    refuse(_malformed(dims, names), f"give one size per name, at most one of them -1, such as {_example(len(names))}")
    devices = _devices(backend)
    sizes = filled(dims, len(devices))
    return Mesh(arranged(devices, sizes), names, axis_types=(AxisType.Auto,) * len(names))


def filled(dims: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """Returns `dims` with the -1 replaced. Raises ShardingError if they need more devices, or do not divide them."""
    known = math.prod(dim for dim in dims if dim != -1)
    if -1 in dims and devices % known == 0:
        return tuple(devices // known if dim == -1 else dim for dim in dims)
    if -1 in dims:
        raise ShardingError(
            f"mesh sizes {dims}: {devices} devices cannot be split into groups of {known}",
            hint=f"the sizes besides -1 must multiply to one of {divisors(devices)}",
        )
    if known > devices:
        raise ShardingError(
            f"mesh sizes {dims} need {known} devices, there are {devices}",
            hint=f"use sizes that multiply to at most {devices}, or one -1 for what is left: {_example(len(dims))}",
        )
    return dims


def arranged(devices: Sequence[Any], sizes: tuple[int, ...]) -> np.ndarray:
    """Returns `devices` in a grid of `sizes`, neighbours close to each other in the hardware.

    Of several slices (connected by a slower network) the first axes get as much as they can take. If not all devices
    are used, they stay in their order, since the wiring of a part of them is unknown.
    """
    if math.prod(sizes) < len(devices):
        return np.asarray(devices[: math.prod(sizes)]).reshape(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    between = _between_slices(sizes, slices)
    within = [size // outer for size, outer in zip(sizes, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _between_slices(sizes: tuple[int, ...], slices: int) -> list[int]:
    """Returns each axis's share of the slices; their product is `slices`, since that divides the product of `sizes`."""
    between = []
    for size in sizes:
        between.append(math.gcd(size, slices))
        slices //= between[-1]
    return between


def _malformed(dims: tuple[Any, ...], names: tuple[Any, ...]) -> list[str]:
    problems = []
    if not names:
        problems.append("a mesh needs at least one axis")
    if len(dims) != len(names):
        problems.append(f"{len(dims)} mesh sizes {dims} for {len(names)} names {names}")
    if len(set(names)) < len(names):
        problems.append(f"mesh axis names {names} are not all different")
    if bad := [dim for dim in dims if not isinstance(dim, int | np.integer) or (dim < 1 and dim != -1)]:
        problems.append(f"mesh sizes {dims} hold {bad}: a size is a positive number or -1")
    if dims.count(-1) > 1:
        problems.append(f"mesh sizes {dims} hold -1 {dims.count(-1)} times")
    return problems


def _example(axes: int) -> tuple[int, ...]:
    return (1, -1, *[1] * (axes - 2)) if axes > 1 else (-1,)


def _devices(backend: str | None) -> Sequence[Any]:
    try:
        return jax.devices(backend)
    except RuntimeError as error:
        if backend is None:
            raise
        raise ShardingError(f"backend {backend!r} is not available", hint=f"use one of {sorted(backends())}") from error
