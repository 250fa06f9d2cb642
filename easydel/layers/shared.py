"""Parts whose parameters several layers share: the model holds one module, and the context brings it to each layer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from easydel.layers.context import Context
from easydel.policy import Policy
from easydel.tree import replica


def shared_module(name: str, context: Context) -> Any:
    """Returns the module that the model holds under `name`; what is changed in it stays the caller's."""
    return replica(context.shared[name])


@lru_cache
def template(record: Any, features: int, policy: Policy) -> Any:
    """Returns a module to copy, the same one for equal records: building NNX modules is slow."""
    return record.build(features, policy)
