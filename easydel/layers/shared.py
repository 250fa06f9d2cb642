"""Parts whose parameters several layers share: the model holds them once, and the context brings them to each layer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from easydel.layers.context import Context
from easydel.layers.part import Part
from easydel.policy import Policy
from easydel.tree import bind, replica


def shared_module(name: str, part: Part, features: int, policy: Policy, context: Context) -> Any:
    """Returns the module of `part` with the parameters that the model holds under `name`."""
    module = replica(template(part, features, policy))
    bind(module, context.shared[name])
    return module


@lru_cache
def template(record: Any, features: int, policy: Policy) -> Any:
    """Returns a module to copy, the same one for equal records: building NNX modules is slow."""
    return record.build(features, policy)
