"""The key-value store that all processes of `jax.distributed` share."""

from __future__ import annotations

from typing import Any

POLL_SECONDS = 0.02


def client_of() -> Any:
    """Returns the client of the coordination service that `jax.distributed.initialize` started, or None."""
    from jax._src import distributed  # it has no public name; orbax reaches it the same way

    return distributed.global_state.client
