"""One layer of a model: a mixer, a feed-forward, and where norms and residuals go around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from easydel.layers.context import Context
from easydel.layers.norm import AnyNorm
from easydel.layers.part import HeadSizes, Part, least, received
from easydel.layers.residual import Residual, Sequential
from easydel.layers.rope import Rope
from easydel.policy import Policy

# The values that flow from layer to layer: "x" [B, T, D] (families may widen it), and values that layers hand on.
Flow = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Norms before (`*_in`) and after (`*_out`) the mixer and the feed-forward, each optional.

    `residual` joins each part's output to its input; the feed-forward uses `ffn_residual` instead, if it is given. In
    the decoder of an encoder-decoder, `cross` stands between mixer and feed-forward, with norms of its own. Questions
    about the layer (caches, ropes, heads) are answered by asking its parts. Layers of which a checkpoint stores weights
    otherwise have another number in `stored`: they are not stacked.
    """

    mixer: Part | None
    ffn: Part | None
    attn_in: AnyNorm | None = None
    attn_out: AnyNorm | None = None
    ffn_in: AnyNorm | None = None
    ffn_out: AnyNorm | None = None
    residual: Residual = Sequential()
    ffn_residual: Residual | None = None
    cross: Part | None = None
    cross_in: AnyNorm | None = None
    cross_out: AnyNorm | None = None
    stored: int = 0

    def build(self, features: int, policy: Policy) -> BlockLayer:
        return BlockLayer(self, features, policy)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Yields the parts in the order in which they run, by their names in the layer's cache."""
        slots = {"mixer": self.mixer, "cross": self.cross, "ffn": self.ffn}
        return ((slot, part) for slot, part in slots.items() if part is not None)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, Any]:
        """Returns each part's empty cache; cross-attention gets its own in the first call."""
        return {slot: part.cache(batch, length, dtype) for slot, part in self.parts()}

    def is_fresh(self, cache: dict[str, Any]) -> bool:
        """True if the next call adds arrays to the cache of some part."""
        return any(part.is_fresh(cache[slot]) for slot, part in self.parts())

    def ropes(self) -> Iterable[Rope]:
        return (rope for _, part in self.parts() for rope in part.ropes())

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (sizes for _, part in self.parts() for sizes in part.head_sizes())

    def repeats_keys(self) -> bool:
        """True if all its parts with heads do so."""
        return all(part.repeats_keys() for _, part in self.parts() if any(part.head_sizes()))

    def shares(self) -> Iterable[tuple[str, Part]]:
        return (shared for _, part in self.parts() for shared in part.shares())

    def hands_on(self) -> Iterable[str]:
        return (name for _, part in self.parts() for name in part.hands_on())

    def reads(self) -> Iterable[str]:
        return (name for _, part in self.parts() for name in part.reads())

    def looks_ahead(self) -> bool:
        return any(part.looks_ahead() for _, part in self.parts())

    def rewinds(self, length: int, end: int) -> int | None:
        return least(part.rewinds(length, end) for _, part in self.parts())


class BlockLayer(nnx.Module):
    def __init__(self, record: Block, features: int, policy: Policy):
        def norm(slot: AnyNorm | None) -> Any:
            return None if slot is None else slot.build(features, policy)

        self.input_layernorm = norm(record.attn_in)
        if record.mixer is not None:
            setattr(self, record.mixer.name, record.mixer.build(features, policy))
        self.attn_output_layernorm = norm(record.attn_out)
        if record.cross is not None:
            assert not record.residual.parallel, "cross-attention reads what self-attention made"
            self.cross_input_layernorm = norm(record.cross_in)
            self.cross_attn = record.cross.build(features, policy)
            self.cross_output_layernorm = norm(record.cross_out)
        self.post_attention_layernorm = norm(record.ffn_in)
        if record.ffn is not None:
            setattr(self, record.ffn.name, record.ffn.build(features, policy))
        self.mlp_output_layernorm = norm(record.ffn_out)
        self.record, self.policy = record, policy

    def __call__(self, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        """Returns the flow after this layer and the layer's new cache (None in, None out)."""
        run = _Run(self, flow, context, cache)
        x_BTD = (self._parallel if self.record.residual.parallel else self._sequential)(flow["x"], run)
        return {**run.flow, "x": self.policy.shard_hidden(x_BTD)}, run.cache

    def _sequential(self, x_BTD: jax.Array, run: _Run) -> jax.Array:
        record = self.record
        ffn_residual = record.ffn_residual or record.residual
        norms = {
            "mixer": (self.input_layernorm, self.attn_output_layernorm, record.residual),
            "ffn": (self.post_attention_layernorm, self.mlp_output_layernorm, ffn_residual),
        }
        if record.cross is not None:
            norms["cross"] = (self.cross_input_layernorm, self.cross_output_layernorm, record.residual)
        for slot, _ in record.parts():
            before, after, residual = norms[slot]
            read = normed(before, x_BTD)
            x_BTD = residual.join(x_BTD, read, run(slot, read), lambda branch, after=after: normed(after, branch))
        return x_BTD

    def _parallel(self, x_BTD: jax.Array, run: _Run) -> jax.Array:
        read = normed(self.input_layernorm, x_BTD)
        mixed, own = run("mixer", read), self.post_attention_layernorm
        fed = run("ffn", read if own is None else own(x_BTD))
        return self.record.residual.join(x_BTD, read, mixed + fed, lambda branch: branch)

    def module(self, slot: str) -> Any:
        """Returns the module of the part in `slot` ("mixer", "cross" or "ffn")."""
        if slot == "cross":
            return self.cross_attn
        return getattr(self, dict(self.record.parts())[slot].name)


class _Run:
    """One call of a layer: runs its parts, and collects their new caches and the values they hand on."""

    def __init__(self, layer: BlockLayer, flow: Flow, context: Context, cache: Any):
        self.layer, self.flow, self.context = layer, flow, context
        self.cache = None if cache is None else dict(cache)

    def __call__(self, slot: str, x_BTD: jax.Array) -> jax.Array:
        handed = {name: value for name, value in self.flow.items() if name != "x"}
        context = replace(self.context, handed=handed) if handed else self.context
        result, kept = self.layer.module(slot)(x_BTD, context, None if self.cache is None else self.cache[slot])
        if self.cache is not None:
            self.cache[slot] = kept
        y_BTD, values = received(result)
        self.flow = {**self.flow, **values}
        return y_BTD


def normed(norm: Any, x: jax.Array) -> jax.Array:
    """Returns `x` after an optional norm."""
    return x if norm is None else norm(x)
