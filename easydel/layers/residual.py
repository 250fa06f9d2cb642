"""Ways to join a part's output to its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax

Normed = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Sequential:
    """x + norm(branch) * `scale`: every part reads the sum after the part before it."""

    parallel: ClassVar[bool] = False
    scale: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """Returns the next x. `read` is the part's input (x after its norm), `norm` the one after the part."""
        return x + _scaled(norm(branch), self.scale)


@dataclass(frozen=True)
class Parallel:
    """x + (mixer + feed-forward) * `scale`: both read the same x, through one norm or one each."""

    parallel: ClassVar[bool] = True
    scale: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """Returns the next x, as in `Sequential`; `branch` is the sum of all parts' outputs."""
        return x + _scaled(norm(branch), self.scale)


@dataclass(frozen=True)
class Post:
    """norm(x + branch * `scale`): norms follow the sum."""

    parallel: ClassVar[bool] = False
    scale: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """Returns the next x, as in `Sequential`."""
        return norm(x + _scaled(branch, self.scale))


@dataclass(frozen=True)
class FromRead:
    """read * `keep` + branch * `add`: the part's input after its norm takes the place of x (BLOOM, MiniMax)."""

    parallel: ClassVar[bool] = False
    keep: float = 1.0
    add: float = 1.0

    def join(self, x: jax.Array, read: jax.Array, branch: jax.Array, norm: Normed) -> jax.Array:
        """Returns the next x, as in `Sequential`."""
        return _scaled(read, self.keep) + _scaled(norm(branch), self.add)


Residual = Sequential | Parallel | Post | FromRead


def _scaled(x: jax.Array, scale: float) -> jax.Array:
    return x if scale == 1.0 else x * scale
