"""Parts whose parameters several layers share: the model holds one module, and the context brings it to each layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from easydel.layers.context import Context
from easydel.policy import Policy
from easydel.tree import replica, replicator


def shared_module(name: str, context: Context) -> Any:
    """Returns the module that the model holds under `name`; what is changed in it stays the caller's."""
    return replica(context.shared[name])


@lru_cache
def maker(record: Any, features: int, policy: Policy) -> Callable[[], Any]:
    """Returns a function that makes modules of a record, the same one for equal records: building is slow."""
    return replicator(record.build(features, policy))
