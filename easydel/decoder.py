"""The decoder-only language model: embed -> layers -> norm -> head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easydel.config import HFConfig
from easydel.errors import ArgumentError
from easydel.inputs import check_shapes
from easydel.layers.block import Block
from easydel.layers.context import Context, counted, segment_starts
from easydel.layers.embed import Embed, Head
from easydel.layers.linear import Embedding, Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.stack import build_layers, layer_caches, run_layers
from easydel.policy import Policy

# B batch, T length of this call, S cache slots, D model
Cache = dict[str, Any]


@dataclass(frozen=True)
class Decoder:
    """What a family makes of its config: a whole decoder-only model, without parameters."""

    vocab: int
    features: int
    blocks: tuple[Block, ...]
    final_norm: AnyNorm | None
    head: Head
    embed: Embed
    max_length: int | None

    @classmethod
    def from_hf(
        cls,
        c: HFConfig,
        *,
        blocks: list[Block],
        final_norm: AnyNorm | None,
        head: Head | None = None,
        embed: Embed | None = None,
    ) -> Decoder:
        """The sizes and tying that nearly every config states under the same names."""
        return cls(
            vocab=c.vocab_size,
            features=c.hidden_size,
            blocks=tuple(blocks),
            final_norm=final_norm,
            head=head or Head(tied=c.tie_word_embeddings),
            embed=embed or Embed(),
            max_length=c.get("max_position_embeddings"),
        )

    @property
    def layer_stacks(self) -> dict[str, tuple[Block, ...]]:
        """Where the layers' parameters are."""
        return {"model/layers": self.blocks}

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each layer the first one with an equal record."""
        first: dict[Block, int] = {}
        return tuple(first.setdefault(block, index) for index, block in enumerate(self.blocks))

    def distinct(self) -> Decoder:
        """The same model with each kind of layer once: enough to see whether it can run at all."""
        return replace(self, blocks=tuple(dict.fromkeys(self.blocks)))

    @property
    def longest(self) -> int | None:
        """Positions beyond which there are no vectors to look up; None where positions are computed."""
        return None if self.embed.positions is None else self.embed.positions.rows

    @staticmethod
    def example(inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a forward pass, given `input_ids`."""
        return inputs

    def build(self, policy: Policy) -> DecoderModel:
        return DecoderModel(self, policy)

    def logits(self, model: DecoderModel, lm_head: Any, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, vocab] in the computation dtype."""
        return self.head.logits(lm_head, model.embed_tokens, hidden_BTD)

    def cache(self, batch: int, length: int, policy: Policy) -> Cache:
        """Room for `length` tokens: layers' caches, how many slots are used, and which may be attended to."""
        return {
            "layers": layer_caches(self.blocks, batch, length, policy),
            "offset": np.zeros((), np.int32),  # known in the trace that makes it: nothing is before it
            "valid": jnp.zeros((batch, length), bool),
        }


class DecoderModel(nnx.Module):
    """Everything but the head. Called with token ids [B, T], gives hidden states [B, T, D] and the new cache."""

    def __init__(self, record: Decoder, policy: Policy):
        embed, features = record.embed, record.features
        width = embed.width or features
        self.embed_tokens = Embedding(record.vocab, width, policy)
        self.embed_positions = None if embed.positions is None else embed.positions.build(features, policy)
        self.embed_layernorm = None if embed.norm is None else embed.norm.build(features, policy)
        self.project_in = None if width == features else Linear(width, features, policy)
        self.project_out = None if width == features else Linear(features, width, policy)
        self.layers = build_layers(record.blocks, features, policy)
        self.norm = None if record.final_norm is None else record.final_norm.build(features, policy)
        self.record, self.policy = record, policy

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        cache: Cache | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        context, cache = make_context(input_ids.shape, attention_mask, position_ids, cache, segment_ids)
        check_positions(input_ids.shape[1], self.record.longest, context)
        x_BTD = self.enter(input_ids, context.positions_BT)
        layers = None if cache is None else cache["layers"]
        x_BTD, layers = run_layers(self.layers, self.record.blocks, self.policy, x_BTD, context, layers)
        x_BTD = self.leave(x_BTD)
        return (x_BTD, None) if cache is None else (unless_full(x_BTD, cache), {**cache, "layers": layers})

    def enter(self, ids_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What the first layer gets."""
        record, x_BTD = self.record.embed, self.embed_tokens(ids_BT)
        if record.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(record.scale, x_BTD.dtype)
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        if self.embed_positions is not None and record.positions is not None:
            x_BTD = x_BTD + self.embed_positions(positions_BT + record.positions.offset)
        if self.embed_layernorm is not None:
            x_BTD = self.embed_layernorm(x_BTD)
        if record.float32:
            x_BTD = x_BTD.astype(jnp.float32)
        return self.policy.shard_hidden(x_BTD)

    def leave(self, x_BTD: jax.Array) -> jax.Array:
        """What the head gets of the last layer's output."""
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return x_BTD if self.project_out is None else self.project_out(x_BTD)


def make_context(
    shape: tuple[int, ...],
    attention_mask: jax.Array | None,
    position_ids: jax.Array | None,
    cache: Cache | None,
    segment_ids: jax.Array | None = None,
    *,
    mask_name: str = "attention_mask",
) -> tuple[Context, Cache | None]:
    """Positions and masks of a call, and the cache with its book-keeping brought forward by this call's tokens.

    ArgumentError for arrays of other shapes than `shape`, and for tokens that a cache has no room for.
    """
    arrays = {mask_name: attention_mask, "position_ids": position_ids, "segment_ids": segment_ids}
    check_shapes(shape, arrays, cached=cache is not None)
    starts_BT = None if segment_ids is None else _starts(segment_ids, cache)
    B, T = shape
    valid_BT = jnp.ones((B, T), bool) if attention_mask is None else attention_mask.astype(bool)
    seen, offset, valid_BS = 0, 0, None if attention_mask is None else valid_BT
    if cache is not None:
        if (slots := cache["valid"].shape[1]) < T:
            raise ArgumentError(f"{T} tokens do not fit into a cache of {slots}")
        seen, offset = jnp.sum(cache["valid"], axis=-1, keepdims=True), cache["offset"]
        valid_BS = jax.lax.dynamic_update_slice_in_dim(cache["valid"], valid_BT, offset, axis=1)
        cache = {**cache, "valid": valid_BS, "offset": offset + T}
    if position_ids is None:
        position_ids = jnp.maximum(counted(valid_BT, starts_BT) + seen, 0)
    known = None if attention_mask is None else valid_BT
    return Context(position_ids.astype(jnp.int32), valid_BS, known, starts_BT, offset), cache


def check_positions(length: int, longest: int | None, context: Context) -> None:
    """ArgumentError for more tokens than there are vectors for positions; with a mask, padding may go beyond."""
    if longest is not None and context.valid_BS is None and longest < length:
        raise ArgumentError(f"{length} tokens are more than the {longest} positions that the model knows")


def unless_full(x_BTD: jax.Array, cache: Cache) -> jax.Array:
    """`x_BTD`, but NaN if more tokens were read into the cache than it has room for."""
    used, slots = cache["offset"], cache["valid"].shape[1]
    return jnp.where(used <= slots, x_BTD, jnp.nan) if isinstance(used, jax.Array) else x_BTD


def _starts(segment_ids: jax.Array, cache: Cache | None) -> jax.Array:
    if cache is not None:
        raise ArgumentError("segment_ids with a cache", hint="a cache holds one sequence in each row")
    return segment_starts(segment_ids)
