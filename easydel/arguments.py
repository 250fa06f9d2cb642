"""What single arguments of a load may be, and an error that tells of all that are something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar, cast

import jax
import numpy as np

from easydel.errors import ArgumentError, EasyDeLError, listed
from easydel.policy import REMAT, REMAT_POLICIES
from easydel.sharding import PartitionAxis, make_mesh

CPU = "cpu"
AXIS_DIMS = (1, -1, 1, 1)
FAILED: Any = object()  # stands for what could not be made of an argument
T = TypeVar("T")


class Checks:
    """Calls that may refuse an argument, all made before one error tells of every refusal."""

    def __init__(self) -> None:
        self.errors: list[EasyDeLError] = []

    def __call__(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """The result of `function`; `FAILED` if it refuses, or is to be given what failed before."""
        if any(argument is FAILED for argument in arguments):
            return FAILED
        try:
            return function(*arguments, **options)
        except EasyDeLError as error:
            self.errors.append(error)
            return FAILED

    def refuse(self) -> None:
        """Raises the one error as it is, or an ArgumentError that lists several."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            problems = [str(error) for error in self.errors]
            raise ArgumentError(f"the arguments have {len(problems)} problems:{listed(problems)}")


def check_targets(targets: Any, load_in_8bit: bool) -> None:
    """ArgumentError for targets that are no names, or that nothing quantizes."""
    if targets is None:
        return
    if not load_in_8bit:
        raise ArgumentError("bit_targeted_params has no effect without load_in_8bit=True")
    names = isinstance(targets, Sequence | Set) and not isinstance(targets, str)
    if not (names and targets and all(isinstance(name, str) for name in targets)):
        raise ArgumentError(f"bit_targeted_params={targets!r}, expected a list of names, or None for all")


def check_rules(rules: Any, auto_shard_params: bool) -> None:
    """ArgumentError for rules that nothing asks."""
    if rules is not None and not auto_shard_params:
        raise ArgumentError("partition_rules has no effect without auto_shard_params=True")


def mapping_of(name: str, value: Any) -> Mapping[Any, Any]:
    """The dict that the argument is, empty for None; ArgumentError for something else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} is a {type(value).__name__}, expected a dict")
    return value


def tuple_of(name: str, value: Any) -> tuple[Any, ...]:
    """The argument's entries; ArgumentError for text, and for what has none."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ArgumentError(f"{name}={value!r}, expected a tuple")
    return tuple(value)


def batch_and_length(shape: tuple[Any, ...]) -> tuple[int, int]:
    """The two sizes of `input_shape`; ArgumentError for others than whole numbers above 0."""
    if len(shape) != 2 or any(type(dim) is not int or dim < 1 for dim in shape):
        raise ArgumentError(f"input_shape={shape!r}, expected (batch, length), both at least 1")
    return cast(tuple[int, int], shape)


def device_of(device: Any) -> Any:
    """The device, by default the first CPU; looked up here, since importing must not."""
    if device is None:
        return jax.local_devices(backend=CPU)[0]
    if not isinstance(device, jax.Device):
        raise ArgumentError(f"device={device!r}, expected a device", hint='jax.devices("cpu")[0] is one')
    return device


def mesh_of(dims: tuple[Any, ...], names: tuple[Any, ...], backend: str | None, *, used: bool) -> jax.sharding.Mesh:
    """The mesh of that shape; ArgumentError if somebody asks for one of several devices that nothing uses."""
    mesh = make_mesh(dims, names, backend)
    if not used and mesh.size > 1 and dims != AXIS_DIMS:
        problem = f"sharding_axis_dims={dims} has no effect"
        raise ArgumentError(problem, hint="pass auto_shard_params=True or shard_fns")
    return mesh


def resolved_axes(axes: Any, names: tuple[Any, ...]) -> PartitionAxis:
    """The partition axes in terms of a mesh with axes `names`."""
    if not isinstance(axes, PartitionAxis):
        raise ArgumentError(f"partition_axis is a {type(axes).__name__}, expected a PartitionAxis")
    return axes.resolve(names)


def precision_of(value: Any) -> Any:
    """The `jax.lax.Precision` of that name."""
    try:
        return None if value is None else jax.lax.Precision(value)
    except ValueError:
        choices = "fastest (default), high, highest"
        raise ArgumentError(f"precision={value!r} is not known", hint=f"use one of {choices}") from None


def remat_of(value: Any) -> str | None:
    """What `Policy.remat` calls that choice."""
    if isinstance(value, bool | np.bool_) or value is None:
        return REMAT if value else None
    if value not in (REMAT, *REMAT_POLICIES):
        raise ArgumentError(f"remat={value!r} is not known", hint=f"use True, or {', '.join(REMAT_POLICIES)}")
    return value
