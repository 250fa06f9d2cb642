"""What one of many hosts reads and holds while a model is loaded, computed from headers."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from easydel.cli.tables import print_facts, size

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, NamedSharding

    from easydel.forms import Form
    from easydel.weights.plan import Plan


def host_facts(
    plan: Plan,
    leaves: Mapping[str, Any],
    placed: Mapping[str, NamedSharding],
    rounded: Mapping[str, Form],
    mesh: AbstractMesh,
    count: int,
) -> dict[str, int]:
    """Returns bytes of files, and of memory that a load on an accelerator takes besides, for the host with the most."""
    import numpy as np

    from easydel.sharding.hosts import Hosts, spec_of
    from easydel.weights.by_hosts import ByHosts
    from easydel.weights.execute import memory_in_flight

    hosts = Hosts.planned(mesh, count)
    splits = {path: spec_of(placed[path], len(leaf.shape)) for path, leaf in leaves.items()}
    reads, parts = ByHosts(plan, splits, rounded, hosts).bytes_read()
    held = {
        path: round(prod(leaf.shape) * np.dtype(leaf.dtype).itemsize * hosts.share(splits[path]))
        for path, leaf in leaves.items()
    }
    facts = {"count": count, "devices": mesh.size // count, "parts": round(parts), "reads": round(reads)}
    return facts | {"memory": memory_in_flight(held.values())}


def print_host(facts: Mapping[str, int]) -> None:
    print(f"\non each of {facts['count']} hosts, with {facts['devices']} devices:")
    over = 100 * (facts["reads"] / max(facts["parts"], 1) - 1)
    print_facts(
        {
            "  read of files": f"{size(facts['reads'])}, {over:.0f}% more than its devices' parts",
            "  memory": f"{size(facts['memory'])} while it loads, with devices that have their own",
        }
    )
