"""Names of tensors as tools save them that put a model into another module, under its name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from easydel.weights.sources import TensorSource

logger = logging.getLogger(__name__)
# DistributedDataParallel, PEFT
WRAPPERS = ("module.", "base_model.model.")
# wrapped parts of a model: regional compilation, FSDP, recomputed layers
INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrapped(tensors: Mapping[str, TensorSource]) -> Mapping[str, TensorSource]:
    """The tensors without wrappers' names: those in front of all, and those that are a tool's wherever they stand."""
    if inner := sorted({found for name in tensors for found in INNER if found in name}):
        told = "%s is left out of names of tensors: it is of a tool that the model was in"
        logger.info(told, " and ".join(inner))
        plain = {_without(name, inner): tensor for name, tensor in tensors.items()}
        return unwrapped(plain) if len(plain) == len(tensors) else tensors
    wrapper = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in tensors)), None)
    if wrapper is None or not tensors:
        return tensors
    logger.info("all names of tensors begin with %s, which is left out: it is of a tool that the model was in", wrapper)
    return unwrapped({name.removeprefix(wrapper): tensor for name, tensor in tensors.items()})


def _without(name: str, parts: Iterable[str]) -> str:
    for part in parts:
        name = name.replace(part, "")
    return name
