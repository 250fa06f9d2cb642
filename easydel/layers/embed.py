"""From token ids to the first layer's input, and from the last layer's output to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.linear import Embedding, Linear
from easydel.layers.norm import AnyNorm
from easydel.policy import Policy


@dataclass(frozen=True)
class Learned:
    """A table of `rows` learned position vectors; position p reads row p + `offset` (OPT, BART: 2)."""

    rows: int
    offset: int = 0

    def build(self, features: int, policy: Policy) -> Embedding:
        return Embedding(self.rows + self.offset, features, policy)


@dataclass(frozen=True)
class Embed:
    """Token vectors of `width` (default: the model's) times `scale`, plus positions, then a norm.

    Where `width` differs from the model's, a projection without bias leads to it (OPT-350m). With `float32` what layers
    add to stays in float32, whatever dtype they compute in (Mamba).
    """

    positions: Learned | None = None
    norm: AnyNorm | None = None
    scale: float = 1.0
    width: int | None = None
    float32: bool = False


@dataclass(frozen=True)
class Head:
    """Logits: the tied embedding or a kernel of its own, times `scale`, capped by tanh (Gemma 2).

    `width` is what it reads where the model's features are projected first, as `Embed.width`.
    """

    tied: bool
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    width: int | None = None

    def build(self, features: int, rows: int, policy: Policy) -> Any:
        """None if tied without bias."""
        if self.tied:
            return TiedHead(rows, policy) if self.bias else None
        return Linear(self.width or features, rows, policy, bias=self.bias)

    def logits(self, lm_head: Any, embed_tokens: Embedding | None, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, vocab] in the computation dtype. `lm_head` is what `build` made, `embed_tokens` what it is tied to."""
        if self.tied:
            assert embed_tokens is not None
            logits = embed_tokens.attend(hidden_BTD)
            logits = logits if lm_head is None else logits + lm_head.bias[...].astype(logits.dtype)
        else:
            logits = lm_head(hidden_BTD)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


class TiedHead(nnx.Module):
    """The bias of a head whose kernel is the token embedding."""

    def __init__(self, rows: int, policy: Policy):
        self.bias = nnx.Param(jax.ShapeDtypeStruct((rows,), policy.param_dtype))
