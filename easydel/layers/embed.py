"""From token ids to the first layer's input, and from the last layer's output to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easydel.layers.activations import activation
from easydel.layers.linear import Embedding, Linear, buffer, parameter
from easydel.layers.norm import Affine, AnyNorm
from easydel.policy import Policy


@dataclass(frozen=True)
class Learned:
    """A table of `rows` learned position vectors; position p reads row p + `offset` (OPT, BART: 2).

    `ahead` more rows are for a stream that reads positions behind those of the tokens (ProphetNet).
    """

    rows: int
    offset: int = 0
    ahead: int = 0

    def build(self, features: int, policy: Policy) -> Embedding:
        return Embedding(self.rows + self.offset + self.ahead, features, policy)


@dataclass(frozen=True)
class Sinusoidal:
    """Sines, then cosines, of position + `offset` (Vaswani et al. 2017, arXiv:1706.03762): no table, no last position.

    Wavelengths grow geometrically from 2 pi to 10000 times that. With `endpoint` the last wavelength is exactly that
    long (tensor2tensor, fairseq); without it the next one would be (the paper). `interleaved` orders the channels as
    sine, cosine, sine, ...
    """

    offset: int = 0
    endpoint: bool = False
    interleaved: bool = False

    def build(self, features: int, policy: Policy) -> Waves:
        return Waves(self, features, policy)


class Waves(nnx.Module):
    def __init__(self, record: Sinusoidal, features: int, policy: Policy):
        self.record, self.features, self.policy = record, features, policy

    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        """Returns position vectors [B, T, D] in the computation dtype; angles need float32's whole mantissa."""
        half = self.features // 2
        steps = np.arange(half, dtype=np.float32) / np.float32(half - self.record.endpoint)
        angles = positions_BT[..., None].astype(jnp.float32) * np.exp(-np.log(np.float32(10000)) * steps)
        waves = [jnp.sin(angles), jnp.cos(angles)]
        if self.record.interleaved:
            both = jnp.stack(waves, axis=-1).reshape(*positions_BT.shape, -1)
        else:
            both = jnp.concatenate(waves, axis=-1)
        odd = self.features % 2
        return jnp.pad(both, ((0, 0), (0, 0), (0, odd))).astype(self.policy.dtype)


@dataclass(frozen=True)
class Feature:
    """A table of `rows` vectors of `width` for something about a token besides its id, `name` in parameter paths."""

    name: str
    rows: int
    width: int


@dataclass(frozen=True)
class Embed:
    """Token vectors of `width` (default: the model's) times `scale`, plus positions and types, then a norm.

    If `width` differs from the model's, a projection (with or without `bias`) converts it: `projected` "before"
    positions are added (OPT-350m), or "after" the norm (ELECTRA). Every token has the first of `types` token types
    unless the caller gives them, and the first of `tasks` (ERNIE). With `normed` "tokens" the norm comes before
    positions are added. With `float32` the residual stream stays in float32, whatever dtype layers compute in (Mamba).
    The first vectors of `features` stand beside every token's before it is projected (RoCBert).
    There are `extra` token vectors beyond those of tokens that have logits (Moshi).
    """

    positions: Learned | Sinusoidal | None = None
    norm: AnyNorm | Affine | None = None
    scale: float = 1.0
    width: int | None = None
    float32: bool = False
    types: int = 0
    projected: Literal["before", "after"] = "before"
    bias: bool = False
    normed: Literal["all", "tokens"] = "all"
    tasks: int = 0
    features: tuple[Feature, ...] = ()
    extra: int = 0

    @property
    def longest(self) -> int | None:
        """Number of positions that the table has vectors for; None if positions are computed."""
        return self.positions.rows if isinstance(self.positions, Learned) else None


@dataclass(frozen=True)
class Transform:
    """norm(act(dense(x))) before a head's product (BERT). `width` is the width of the result, if it is another."""

    act: str
    norm: AnyNorm | None
    width: int | None = None
    bias: bool = True


@dataclass(frozen=True)
class Head:
    """Logits: the tied embedding or a kernel of its own, times `scale`, capped by tanh (Gemma 2).

    `width` is the width of the head's input where the model's features are projected first, as `Embed.width`. A `fixed`
    bias is not learned. Logits beyond the first `rows` are left out: a vocabulary may be padded.
    """

    tied: bool
    bias: bool = False
    fixed: bool = False
    scale: float = 1.0
    softcap: float | None = None
    width: int | None = None
    transform: Transform | None = None
    rows: int | None = None

    def build(self, features: int, rows: int, policy: Policy) -> Any:
        """Returns the head's module; None if it has nothing but the tied embedding."""
        change = self.transform
        inputs = (change and change.width) or self.width or features
        head: Any
        if self.tied:
            head = TiedHead(rows if self.bias else None, policy) if self.bias or change else None
        else:
            head = Linear(inputs, rows, policy, bias=self.bias)
        if self.fixed:
            head.bias = buffer((rows,), policy.param_dtype)
        if head is not None and change is not None:
            head.dense = Linear(features, inputs, policy, bias=change.bias)
            if change.norm is not None:
                head.norm = change.norm.build(inputs, policy)
        return head

    def logits(self, lm_head: Any, embed_tokens: Embedding | None, hidden_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, T, vocab] in the computation dtype. `lm_head` is the module from `build`."""
        if self.transform is not None:
            hidden_BTD = activation(self.transform.act)(lm_head.dense(hidden_BTD))
            hidden_BTD = hidden_BTD if self.transform.norm is None else lm_head.norm(hidden_BTD)
        if self.tied:
            assert embed_tokens is not None
            logits = embed_tokens.attend(hidden_BTD)
            bias = None if lm_head is None else lm_head.bias
            logits = logits if bias is None else logits + bias[...].astype(logits.dtype)
        else:
            logits = lm_head(hidden_BTD)
        if self.rows is not None:
            logits = logits[..., : self.rows]
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


class TiedHead(nnx.Module):
    """The parameters of a tied head besides the embedding: a bias of `rows`, perhaps a transform (`dense`, `norm`)."""

    def __init__(self, rows: int | None, policy: Policy):
        self.bias = None if rows is None else parameter((rows,), policy)
