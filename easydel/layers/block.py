"""One layer of a decoder: a mixer, a feed-forward, and where norms and residuals go around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import jax
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.cross import CrossAttention
from easydel.layers.norm import AnyNorm
from easydel.policy import Policy


class Mixer(Protocol):
    """A record of what mixes tokens: attention, or a recurrence.

    Its module is called as `module(x_BTD, context, cache)` and returns the mixed tokens and the new cache; `cache`
    makes an empty one. `name` is the module's place in parameter paths ("self_attn", "mixer").
    """

    name: ClassVar[str]

    def build(self, features: int, policy: Policy) -> Any: ...
    def cache(self, batch: int, length: int, dtype: Any) -> Any: ...


class FeedForward(Protocol):
    """A record of what acts on each token alone; its module maps [B, T, D] to [B, T, D]."""

    def build(self, features: int, policy: Policy) -> Any: ...


@dataclass(frozen=True)
class Block:
    """Norms before (`*_in`) and after (`*_out`) the mixer and the feed-forward, each optional.

    `residual`:
    - "sequential": h = x + attn_out(mixer(attn_in(x))); y = h + ffn_out(ffn(ffn_in(h)))
    - "parallel": both read x: y = x + mixer(attn_in(x)) + ffn(ffn_in(x)); without `ffn_in` they share `attn_in`
    - "post": norms follow the sum: h = attn_out(x + mixer(x)); y = ffn_out(h + ffn(h))
    `residual_scale` multiplies what is added to x. In the decoder of an encoder-decoder, `cross` stands between mixer
    and feed-forward, with norms of its own.
    """

    mixer: Mixer | None
    ffn: FeedForward | None
    attn_in: AnyNorm | None = None
    attn_out: AnyNorm | None = None
    ffn_in: AnyNorm | None = None
    ffn_out: AnyNorm | None = None
    residual: Literal["sequential", "parallel", "post"] = "sequential"
    residual_scale: float = 1.0
    cross: CrossAttention | None = None
    cross_in: AnyNorm | None = None
    cross_out: AnyNorm | None = None

    def build(self, features: int, policy: Policy) -> BlockLayer:
        return BlockLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """The mixer's empty cache; with cross-attention also a place for what the first call makes of the encoder."""
        own = None if self.mixer is None else self.mixer.cache(batch, length, dtype)
        return own if self.cross is None else {"self": own, "cross": None}


class BlockLayer(nnx.Module):
    def __init__(self, record: Block, features: int, policy: Policy):
        def norm(slot: AnyNorm | None) -> Any:
            return None if slot is None else slot.build(features, policy)

        self.input_layernorm = norm(record.attn_in)
        if record.mixer is not None:
            setattr(self, record.mixer.name, record.mixer.build(features, policy))
        self.attn_output_layernorm = norm(record.attn_out)
        if record.cross is not None:
            assert record.residual != "parallel", "cross-attention reads what self-attention made"
            self.cross_input_layernorm = norm(record.cross_in)
            self.cross_attn = record.cross.build(features, policy)
            self.cross_output_layernorm = norm(record.cross_out)
        self.post_attention_layernorm = norm(record.ffn_in)
        self.mlp = None if record.ffn is None else record.ffn.build(features, policy)
        self.mlp_output_layernorm = norm(record.ffn_out)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        if self.record.residual == "parallel":
            return self._parallel(x_BTD, context, cache)
        own = cache if self.record.cross is None or cache is None else cache["self"]
        if self.record.mixer is not None:
            mixed, own = self._mix(self._normed(self.input_layernorm, x_BTD), context, own)
            x_BTD = self._add(x_BTD, mixed, self.attn_output_layernorm)
        if self.record.cross is None:
            cache = own
        else:
            normed = self._normed(self.cross_input_layernorm, x_BTD)
            seen, kept = self.cross_attn(normed, context, None if cache is None else cache["cross"])
            x_BTD = self._add(x_BTD, seen, self.cross_output_layernorm)
            cache = None if cache is None else {"self": own, "cross": kept}
        if self.mlp is not None:
            fed = self.mlp(self._normed(self.post_attention_layernorm, x_BTD))
            x_BTD = self._add(x_BTD, fed, self.mlp_output_layernorm)
        return self.policy.shard_hidden(x_BTD), cache

    def _parallel(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        normed = self._normed(self.input_layernorm, x_BTD)
        mixed, cache = self._mix(normed, context, cache)
        assert self.mlp is not None
        fed = self.mlp(normed if self.post_attention_layernorm is None else self.post_attention_layernorm(x_BTD))
        return self.policy.shard_hidden(x_BTD + (mixed + fed) * self.record.residual_scale), cache

    def _mix(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        assert self.record.mixer is not None
        return getattr(self, self.record.mixer.name)(x_BTD, context, cache)

    def _add(self, x_BTD: jax.Array, branch: jax.Array, norm: Any) -> jax.Array:
        scaled = branch if self.record.residual_scale == 1.0 else branch * self.record.residual_scale
        if self.record.residual == "post":
            return self._normed(norm, x_BTD + scaled)
        if self.record.residual_scale == 1.0:
            return x_BTD + self._normed(norm, branch)
        return x_BTD + self._normed(norm, branch) * self.record.residual_scale

    @staticmethod
    def _normed(norm: Any, x: jax.Array) -> jax.Array:
        return x if norm is None else norm(x)
