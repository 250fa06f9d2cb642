"""A transformer that several recurrent layers share: it reads the embeddings beside what flows (Zamba).

Glorioso et al. 2024, arXiv:2405.16712; with adapters of each layer's own: arXiv:2411.15242.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.layers.attention import Attention
from easydel.layers.context import Context
from easydel.layers.linear import Linear
from easydel.layers.mlp import GLU
from easydel.layers.norm import AnyNorm
from easydel.layers.part import HeadSizes, Part, least
from easydel.layers.rope import Rope
from easydel.layers.shared import shared_module
from easydel.policy import Policy


@dataclass(frozen=True)
class Adapters:
    """Low-rank additions of `rank` for the layers `users`: to gate and up, and with `queries` to q, k and v."""

    users: tuple[int, ...]
    rank: int
    queries: bool = False


@dataclass(frozen=True)
class GlobalBlock(Part):
    """`attention` over hidden states and embeddings side by side, then `ffn`; no residuals. `norm` is before each."""

    attention: Attention
    ffn: GLU
    norm: AnyNorm
    adapters: Adapters | None = None

    def build(self, features: int, policy: Policy) -> GlobalBlockLayer:
        return GlobalBlockLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        return self.attention.cache(batch, length, dtype)


class GlobalBlockLayer(nnx.Module):
    def __init__(self, record: GlobalBlock, features: int, policy: Policy):
        heads, adapters, wide = record.attention.heads, record.adapters, 2 * features
        self.input_layernorm = record.norm.build(wide, policy)
        self.self_attn = record.attention.build(wide, policy)
        self.self_attn.o_proj = Linear(heads.count * heads.values, features, policy)
        self.post_attention_layernorm = record.norm.build(features, policy)
        self.mlp = record.ffn.build(features, policy)
        if adapters is not None:
            sizes = {"gate_up_adapter": (features, 2 * record.ffn.hidden)}
            if adapters.queries:
                outputs = (heads.count * heads.dim, heads.kv * heads.dim, heads.kv * heads.values)
                sizes |= {f"{name}_adapter": (wide, size) for name, size in zip("qkv", outputs, strict=True)}
            for name, (inputs, size) in sizes.items():
                own = {str(user): Adapter(inputs, adapters.rank, size, policy) for user in adapters.users}
                setattr(self, name, nnx.Dict(own))
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any, user: int) -> tuple[jax.Array, Any]:
        adapters, entered_BTD = self.record.adapters, context.entered_BTD
        assert entered_BTD is not None
        if adapters is not None:  # of this replica alone
            self._adapt(adapters, str(user))
        both_BTE = jnp.concatenate([x_BTD, entered_BTD.astype(x_BTD.dtype)], axis=-1)
        y_BTD, cache = self.self_attn(self.input_layernorm(both_BTE), context, cache)
        assert isinstance(y_BTD, jax.Array), "what it hands on would be lost"
        return self.mlp(self.post_attention_layernorm(y_BTD), context, None)[0], cache

    def _adapt(self, adapters: Adapters, user: str) -> None:
        half = self.record.ffn.hidden
        places: dict[str, tuple[Any, str, slice]] = {
            "gate_proj": (self.mlp, "gate_up_adapter", slice(half)),
            "up_proj": (self.mlp, "gate_up_adapter", slice(half, None)),
        }
        if adapters.queries:
            places |= {f"{name}_proj": (self.self_attn, f"{name}_adapter", slice(None)) for name in "qkv"}
        for name, (owner, adapter, outputs) in places.items():
            own = getattr(getattr(self, adapter), user)
            setattr(owner, name, Adapted(getattr(owner, name), own, outputs))


class Adapter(nnx.Module):
    def __init__(self, inputs: int, rank: int, outputs: int, policy: Policy):
        self.down = Linear(inputs, rank, policy)
        self.up = Linear(rank, outputs, policy)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(self.down(x))


class Adapted(nnx.Module):
    """A Linear plus some of the outputs of an adapter."""

    def __init__(self, linear: Any, adapter: Adapter, outputs: slice):
        self.linear, self.adapter, self.outputs = linear, adapter, outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x) + self.adapter(x)[..., self.outputs]


@dataclass(frozen=True)
class Informed(Part):
    """`mixer` reads a norm of hidden states plus a projection of what the model's `shared` block makes of them.

    It is the `user`-th layer that asks the block.
    """

    name: ClassVar[str] = "informed"
    mixer: Part
    block: GlobalBlock
    norm: AnyNorm
    shared: str
    user: int

    def build(self, features: int, policy: Policy) -> InformedLayer:
        return InformedLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        return {"mixer": self.mixer.cache(batch, length, dtype), "block": self.block.cache(batch, length, dtype)}

    def ropes(self) -> Iterable[Rope]:
        return (*self.mixer.ropes(), *self.block.attention.ropes())

    def head_sizes(self) -> Iterable[HeadSizes]:
        return (*self.mixer.head_sizes(), *self.block.attention.head_sizes())

    def shares(self) -> Iterable[tuple[str, Part]]:
        return ((self.shared, self.block),)

    def reads(self) -> Iterable[str]:
        return ("entered_BTD",)

    def rewinds(self, length: int, end: int) -> int | None:
        return least((self.mixer.rewinds(length, end), self.block.attention.rewinds(length, end)))


class InformedLayer(nnx.Module):
    def __init__(self, record: Informed, features: int, policy: Policy):
        self.linear = Linear(features, features, policy)
        self.input_layernorm = record.norm.build(features, policy)
        self.mixer = record.mixer.build(features, policy)
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, caches = self.record, cache or {"mixer": None, "block": None}
        block = shared_module(record.shared, context)
        told_BTD, kept = block(x_BTD, context, caches["block"], record.user)
        y_BTD, state = self.mixer(self.input_layernorm(x_BTD + self.linear(told_BTD)), context, caches["mixer"])
        return y_BTD, None if cache is None else {"mixer": state, "block": kept}
