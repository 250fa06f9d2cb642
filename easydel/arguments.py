"""Checks and conversions of single arguments of a load, and one error that lists all refused ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from os import PathLike
from typing import Any, TypeVar, cast

import jax
import numpy as np

from easydel.errors import ArgumentError, EasyDeLError, listed
from easydel.policy import REMAT, REMAT_POLICIES
from easydel.sharding import PartitionAxis, make_mesh

CPU = "cpu"
AXIS_DIMS = (1, -1, 1, 1)
FAILED: Any = object()  # stands for the result of a conversion that failed
T = TypeVar("T")


class Checks:
    """Runs calls that may refuse an argument, so that one error can report every refusal."""

    def __init__(self) -> None:
        self.errors: list[EasyDeLError] = []

    def __call__(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Returns the result of `function`; `FAILED` if it refuses, or if an argument is itself `FAILED`."""
        if any(argument is FAILED for argument in arguments):
            return FAILED
        try:
            return function(*arguments, **options)
        except EasyDeLError as error:
            self.errors.append(error)
            return FAILED

    def refuse(self) -> None:
        """Raises the only error as it is, or an ArgumentError that lists several."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            problems = [str(error) for error in self.errors]
            raise ArgumentError(f"the arguments have {len(problems)} problems:{listed(problems)}")


def check_bits(load_in_8bit: bool, load_in_4bit: bool, dequantize: bool | None) -> None:
    """Raises ArgumentError for choices of storage that exclude each other."""
    chosen = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit, "dequantize": dequantize}
    if len(given := [f"{name}=True" for name, value in chosen.items() if value is True]) > 1:
        raise ArgumentError(f"{' and '.join(given)} exclude each other", hint="choose one")


def check_targets(targets: Any, quantized: bool) -> None:
    """Raises ArgumentError for targets that are no names, or that nothing quantizes."""
    if targets is None:
        return
    if not quantized:
        raise ArgumentError("bit_targeted_params has no effect without load_in_8bit=True or load_in_4bit=True")
    names = isinstance(targets, Sequence | Set) and not isinstance(targets, str)
    if not (names and targets and all(isinstance(name, str) for name in targets)):
        raise ArgumentError(f"bit_targeted_params={targets!r}, expected a list of names, or None for all")


def check_rules(rules: Any, auto_shard_params: bool) -> None:
    """Raises ArgumentError for rules that have no effect."""
    if rules is not None and not auto_shard_params:
        raise ArgumentError("partition_rules has no effect without auto_shard_params=True")


def mapping_of(name: str, value: Any) -> Mapping[Any, Any]:
    """Returns the argument, which must be a dict, empty for None. Raises ArgumentError for any other type."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} is a {type(value).__name__}, expected a dict")
    return value


def path_of(name: str, value: Any) -> str | PathLike[str] | None:
    """Returns the argument, which must be a name or path, or None. Raises ArgumentError for any other type."""
    if value is not None and not isinstance(value, str | PathLike):
        raise ArgumentError(f"{name} is a {type(value).__name__}, expected a Hub id or a directory")
    return value


def patterns_of(name: str, value: Any) -> tuple[str, ...]:
    """Returns the argument's regular expressions. Raises ArgumentError for anything else than a list of them."""
    patterns = tuple_of(name, () if value is None else value)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ArgumentError(f"{name} has {pattern!r}, which is no regular expression: {error}") from None
    return patterns


def tuple_of(name: str, value: Any) -> tuple[Any, ...]:
    """Returns the argument's entries as a tuple. Raises ArgumentError for text, and for values without entries."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ArgumentError(f"{name}={value!r}, expected a tuple")
    return tuple(value)


def batch_and_length(shape: tuple[Any, ...]) -> tuple[int, int]:
    """Returns the two sizes of `input_shape`. Raises ArgumentError unless they are whole numbers above 0."""
    if len(shape) != 2 or any(type(dim) is not int or dim < 1 for dim in shape):
        raise ArgumentError(f"input_shape={shape!r}, expected (batch, length), both at least 1")
    return cast(tuple[int, int], shape)


def device_of(device: Any) -> Any:
    """Returns the device, by default the first CPU, which is looked up here since importing must not."""
    if device is None:
        return jax.local_devices(backend=CPU)[0]
    if not isinstance(device, jax.Device):
        raise ArgumentError(f"device={device!r}, expected a device", hint='jax.devices("cpu")[0] is one')
    return device


def mesh_of(dims: tuple[Any, ...], names: tuple[Any, ...], backend: str | None, *, used: bool) -> jax.sharding.Mesh:
    """Returns the mesh of that shape. Raises ArgumentError if it spans several devices, by request, and is not used."""
    mesh = make_mesh(dims, names, backend)
    if not used and mesh.size > 1 and dims != AXIS_DIMS:
        problem = f"sharding_axis_dims={dims} has no effect"
        raise ArgumentError(problem, hint="pass auto_shard_params=True or shard_fns")
    return mesh


def resolved_axes(axes: Any, names: tuple[Any, ...]) -> PartitionAxis:
    """Returns the partition axes in terms of a mesh with axes `names`."""
    if not isinstance(axes, PartitionAxis):
        raise ArgumentError(f"partition_axis is a {type(axes).__name__}, expected a PartitionAxis")
    return axes.resolve(names)


def precision_of(value: Any) -> Any:
    """Returns the `jax.lax.Precision` of that name."""
    try:
        return None if value is None else jax.lax.Precision(value)
    except ValueError:
        choices = "fastest (default), high, highest"
        raise ArgumentError(f"precision={value!r} is not known", hint=f"use one of {choices}") from None


def remat_of(value: Any) -> str | None:
    """Returns the choice as a value of `Policy.remat`."""
    if isinstance(value, bool | np.bool_) or value is None:
        return REMAT if value else None
    if value not in (REMAT, *REMAT_POLICIES):
        raise ArgumentError(f"remat={value!r} is not known", hint=f"use True, or {', '.join(REMAT_POLICIES)}")
    return value
