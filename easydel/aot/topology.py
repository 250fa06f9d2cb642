"""Chips, and meshes of them that the TPU compiler takes without their being there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.sharding import AxisType, Mesh

from easydel.errors import ArgumentError
from easydel.sharding import AXES
from easydel.sharding.mesh import arranged, filled

# What makes libtpu compile for chips that are absent, in several processes at once: without these it would ask the
# network what it runs on, and keep a lock.
_ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Chip:
    """Peak rates of a device, per second, and the bytes of its memory; Google's figures for each TPU version.

    `flops` are operations in bfloat16, `bandwidth` is to its memory, and `sends` is what all its links together carry
    away from it: no way of communicating is faster, and one over a single mesh axis uses some links only.
    """

    flops: float
    bandwidth: float
    memory: int
    sends: float


GIB = 2**30
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32 * GIB, 300e9),
    "v5e": Chip(197e12, 819e9, 16 * GIB, 200e9),
    "v5p": Chip(459e12, 2765e9, 95 * GIB, 600e9),
    "v6e": Chip(918e12, 1640e9, 32 * GIB, 400e9),
}


def _hide_cpu_flags() -> None:
    """Takes flags of XLA's CPU compiler out of the environment, once that has read them.

    libtpu reads the same variable when it first compiles, and ends the process at a flag that it lacks.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in given if not flag.startswith("--xla_cpu_")]
    if kept != given:
        jax.local_devices(backend="cpu")
        os.environ["XLA_FLAGS"] = " ".join(kept)


def topology_mesh(name: str, dims: Sequence[int] = (1, -1, 1, 1)) -> Mesh:
    """Returns a mesh of the TPU topology `name`, such as "v5e:2x4", whose devices can be compiled for but not run.

    Raises ArgumentError if `libtpu` is not installed, or knows no such topology.
    """
    if find_spec("libtpu") is None:
        raise ArgumentError("compiling for TPUs needs libtpu", hint="pip install '.[tpu-plan]'")
    from jax.experimental import topologies

    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)
    _hide_cpu_flags()
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (jax.errors.JaxRuntimeError, ValueError, KeyError) as error:
        told = str(error).partition("\n")[0][:200]
        raise ArgumentError(
            f"{name!r} is no TPU topology: {told}", hint="it looks like v5e:4x4 or v5p:2x2x2"
        ) from error
    sizes = filled(tuple(dims), len(devices))
    return Mesh(arranged(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
