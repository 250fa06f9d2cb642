"""Names of tensors as tools save them that put a model into another module, under its name."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from easydel.weights.sources import TensorSource

logger = logging.getLogger(__name__)
# torch.compile, DistributedDataParallel, FullyShardedDataParallel, PEFT
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")


def unwrapped(tensors: Mapping[str, TensorSource]) -> Mapping[str, TensorSource]:
    """The tensors without wrappers' names in front of them, which all have to share."""
    wrapper = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in tensors)), None)
    if wrapper is None or not tensors:
        return tensors
    logger.info("all names of tensors begin with %s, which is left out: it is of a tool that the model was in", wrapper)
    return unwrapped({name.removeprefix(wrapper): tensor for name, tensor in tensors.items()})
