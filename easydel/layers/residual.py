"""How what a part returns is joined to what went into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax

Normed = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Sequential:
    """x + norm(branch) * `scale`: every part reads what the one before it made."""

    parallel: ClassVar[bool] = False
    scale: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """Returns the next x. `read` is what the part read (x after its norm), `norm` the one after the part."""
        return x + _scaled(norm(branch), self.scale)


@dataclass(frozen=True)
class Parallel:
    """x + (mixer + feed-forward) * `scale`: both read x, by one norm or by one each."""

    parallel: ClassVar[bool] = True
    scale: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """As in `Sequential`, with what all parts made together for `branch`."""
        return x + _scaled(norm(branch), self.scale)


@dataclass(frozen=True)
class Post:
    """norm(x + branch * `scale`): norms follow the sum."""

    parallel: ClassVar[bool] = False
    scale: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """As in `Sequential`."""
        return norm(x + _scaled(branch, self.scale))


@dataclass(frozen=True)
class FromRead:
    """read * `keep` + branch * `add`: what goes past a part is what it read, the norm's output (BLOOM, MiniMax)."""

    parallel: ClassVar[bool] = False
    keep: float = 1.0
    add: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """As in `Sequential`."""
        return _scaled(read, self.keep) + _scaled(norm(branch), self.add)


Residual = Sequential | Parallel | Post | FromRead


def _scaled(x: jax.Array, scale: float) -> jax.Array:
    return x if scale == 1.0 else x * scale
