"""The decoder-only language model: embed -> layers -> norm -> head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from easydel.config import HFConfig
from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.inputs import check_shapes
from easydel.layers.block import Block, Flow
from easydel.layers.context import Context, counted, segment_starts
from easydel.layers.embed import Embed, Head
from easydel.layers.linear import Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import carriers, least
from easydel.layers.stack import layer_caches
from easydel.layers.tower import PerLayer, Stream, TowerModel
from easydel.policy import Policy

# B batch, T length of this call, S cache slots, D model
Cache = dict[str, Any]


@dataclass(frozen=True)
class Decoder:
    """The record of a whole decoder-only model, which a family makes from its config. It holds no parameters."""

    vocab: int
    features: int
    blocks: tuple[Block, ...]
    final_norm: AnyNorm | None
    head: Head
    embed: Embed
    max_length: int | None
    per_layer: PerLayer | None = None
    stream: Stream | None = None
    fed: ClassVar[str] = "input_ids"  # the argument that takes a new token
    has_encoder: ClassVar[bool] = False
    marks: ClassVar[bool] = False  # it takes no global_attention_mask
    first_token: ClassVar[int | None] = None  # prompts come from the user
    vectors_at: ClassVar[str] = "model.embed_tokens"  # the module whose vectors a tied head has

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
        """Returns a decoder with the sizes and tying that nearly every config states under the same names."""
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
        """The layers' records, by the place of their parameters."""
        return {"model/layers": self.blocks}

    def rewinds(self, length: int, end: int) -> int | None:
        """Number of slots one can go back in a cache for `length` tokens, `end` of them ever written; None: all."""
        return least(block.rewinds(length, end) for block in dict.fromkeys(self.blocks))

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """Numbers of the first layers with equal records, one for each layer."""
        first: dict[Block, int] = {}
        return tuple(first.setdefault(block, index) for index, block in enumerate(self.blocks))

    def distinct(self) -> Decoder:
        """Returns the same model with each kind of layer once: enough to see whether it can run at all."""
        return replace(self, blocks=tuple(dict.fromkeys(self.blocks)))

    @property
    def longest(self) -> int | None:
        """Number of positions that there are vectors for; None if positions are computed."""
        return self.embed.longest

    def vocab_of(self, name: str) -> int:
        """Returns the number of tokens that the input `name` is chosen from."""
        return self.vocab + self.embed.extra

    def longest_of(self, name: str) -> int | None:
        """Returns `longest`, whatever the input."""
        return self.longest

    @property
    def looks_ahead(self) -> bool:
        """True if tokens see later ones (BERT): such a model has no cache and cannot continue a text."""
        return any(block.looks_ahead() for block in self.blocks)

    def unpacked(self, tokens: int) -> list[str]:
        """Lists what keeps a row of `tokens` from holding several documents (`segment_ids`)."""
        ahead = ["tokens that see later ones"] if self.looks_ahead else []
        return [*ahead, *sorted(set(carriers(self, tokens)))]

    @property
    def prefixed(self) -> bool:
        """True if some layer sees the tokens of a prefix both ways."""
        return any(name == "prefix_BS" for block in self.blocks for name in block.reads())

    @staticmethod
    def example(inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the inputs of a forward pass, given `input_ids`."""
        return inputs

    def build(self, policy: Policy) -> DecoderModel:
        return DecoderModel(self, policy)

    def logits(self, model: DecoderModel, lm_head: Any, hidden_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, T, vocab] in the computation dtype."""
        return self.head.logits(lm_head, model.embed_tokens, hidden_BTD)

    def cache(self, batch: int, length: int, policy: Policy) -> Cache:
        """Returns room for `length` tokens: layers' caches, the number of used slots, and the mask of valid ones."""
        return {**self.slots(batch, length), "layers": layer_caches(self.blocks, batch, length, policy)}

    def slots(self, batch: int, length: int) -> Cache:
        """Returns a cache's book-keeping before any token. Raises ArgumentError if tokens see later ones."""
        if self.looks_ahead:
            problem = "no cache for a model whose tokens see later ones"
            raise ArgumentError(problem, hint="load it with config_kwargs={'is_decoder': True}, or call it without")
        prefix = {"prefix": jnp.zeros((batch, length), bool)} if self.prefixed else {}
        return empty_slots(batch, length) | prefix


class DecoderModel(TowerModel):
    """Everything but the head. Maps token ids [B, T] to hidden states [B, T, D] and the new cache."""

    def __init__(self, record: Decoder, policy: Policy):
        super().__init__(record, record.vocab_of("input_ids"), record.features, policy)
        width = record.head.width or record.features
        self.project_out = None if width == record.features else Linear(record.features, width, policy)
        self.record = record

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        cache: Cache | None = None,
        segment_ids: jax.Array | None = None,
        prefix_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        between: list[jax.Array] | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Computes hidden states; a list `between` gets the first layer's input and each layer's output."""
        shape = self._shape(input_ids, inputs_embeds)
        self._check(prefix_mask, token_type_ids)
        if segment_ids is not None:
            refuse_packed(self.record.unpacked(shape[1]))
        masks: Any = {"segment_ids": segment_ids, "prefix_mask": prefix_mask, "token_type_ids": token_type_ids}
        context, cache = make_context(shape, attention_mask, position_ids, cache, **masks)
        check_positions(shape[1], self.record.longest, context)
        flow, context = self.enter(input_ids, context, types_BT=token_type_ids, embedded_BTD=inputs_embeds)
        caches = None if cache is None else cache["layers"]
        if between is None:
            flow, layers = self.run(flow, context, caches)
        else:
            flow, layers = self.run_one_by_one(flow, context, caches, between)
        x_BTD = self.leave(flow)
        if between is not None:
            between[-1] = x_BTD
        return (x_BTD, None) if cache is None else (unless_full(x_BTD, cache), {**cache, "layers": layers})

    def _shape(self, input_ids: jax.Array | None, inputs_embeds: jax.Array | None) -> tuple[int, int]:
        """Returns [batch, length] of a call. ArgumentError unless it has either ids or vectors."""
        if (input_ids is None) == (inputs_embeds is None):
            problem = "input_ids is missing" if input_ids is None else "input_ids and inputs_embeds exclude each other"
            raise ArgumentError(problem, hint="pass token ids [batch, length]")
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        return given.shape[0], given.shape[1]

    def leave(self, flow: Flow, *, last: bool = False) -> jax.Array:
        """Returns the head's input, from the flow after the last layer."""
        x_BTD = super().leave(flow, last=last)
        return x_BTD if self.project_out is None else self.project_out(x_BTD)

    def _check(self, prefix_mask: jax.Array | None, token_type_ids: jax.Array | None) -> None:
        """Raises ArgumentError for inputs that this model does not use."""
        if prefix_mask is not None and not self.record.prefixed:
            raise ArgumentError("the model takes no prefix_mask", hint="its tokens never see later ones")
        if token_type_ids is not None and not self.record.embed.types:
            raise ArgumentError("the model takes no token_type_ids", hint="leave it out: it has one kind of tokens")


def make_context(
    shape: tuple[int, ...],
    attention_mask: jax.Array | None,
    position_ids: jax.Array | None,
    cache: Cache | None,
    segment_ids: jax.Array | None = None,
    prefix_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    *,
    mask_name: str = "attention_mask",
) -> tuple[Context, Cache | None]:
    """Returns positions and masks of a call, and the cache with its book-keeping advanced by this call's tokens.

    Raises ArgumentError for arrays of other shapes than `shape`, and for tokens that the cache has no room for.
    """
    arrays = {mask_name: attention_mask, "position_ids": position_ids, "segment_ids": segment_ids}
    arrays |= {"prefix_mask": prefix_mask, "token_type_ids": token_type_ids}
    check_shapes(shape, arrays, cached=cache is not None)
    starts_BT = None if segment_ids is None else _starts(segment_ids, cache)
    B, T = shape
    valid_BT = jnp.ones((B, T), bool) if attention_mask is None else attention_mask.astype(bool)
    seen, offset, valid_BS = 0, 0, None if attention_mask is None else valid_BT
    prefix_BS = None if prefix_mask is None else prefix_mask.astype(bool)
    if cache is not None:
        if (slots := cache["valid"].shape[1]) < T:
            raise ArgumentError(f"{T} tokens do not fit into a cache of {slots}")
        seen, offset = jnp.sum(cache["valid"], axis=-1, keepdims=True), cache["offset"]
        valid_BS = jax.lax.dynamic_update_slice_in_dim(cache["valid"], valid_BT, offset, axis=1)
        if "prefix" in cache:
            own_BT = jnp.zeros((B, T), bool) if prefix_BS is None else prefix_BS
            prefix_BS = jax.lax.dynamic_update_slice_in_dim(cache["prefix"], own_BT, offset, axis=1)
            cache = {**cache, "prefix": prefix_BS}
        cache = {**cache, "valid": valid_BS, "offset": offset + T}
    if position_ids is None:
        position_ids = jnp.maximum(counted(valid_BT, starts_BT) + seen, 0)
    known = None if attention_mask is None else valid_BT
    placed: Any = {"slot": offset} if isinstance(offset, jax.Array) else {"known_slot": int(offset)}
    context = Context(position_ids.astype(jnp.int32), valid_BS, known, starts_BT, prefix_BS=prefix_BS, **placed)
    return context, cache


def empty_slots(batch: int, length: int) -> Cache:
    """Returns a cache's book-keeping before any token: the number of used slots, and a mask of slots to attend to."""
    # numpy's zero, unlike JAX's, is known at trace time: attention then sees that nothing is before it
    return {"offset": np.zeros((), np.int32), "valid": jnp.zeros((batch, length), bool)}


def check_positions(length: int, longest: int | None, context: Context) -> None:
    """Raises ArgumentError for more tokens than there are position vectors; with a mask, padding may go beyond."""
    if longest is not None and context.valid_BS is None and longest < length:
        raise ArgumentError(f"{length} tokens are more than the {longest} positions that the model knows")


def unless_full(x_BTD: jax.Array, cache: Cache) -> jax.Array:
    """Returns `x_BTD`, or NaN if more tokens were read into the cache than it has room for."""
    used, slots = cache["offset"], cache["valid"].shape[1]
    return jnp.where(used <= slots, x_BTD, jnp.nan) if isinstance(used, jax.Array) else x_BTD


def refuse_packed(reasons: Sequence[str]) -> None:
    """Raises UnsupportedModelError if there are reasons why a row must not hold several documents."""
    if reasons:
        hint = "documents would mix; pass one document in each row"
        raise UnsupportedModelError(f"segment_ids are not implemented for {', '.join(reasons)}", hint=hint)


def _starts(segment_ids: jax.Array, cache: Cache | None) -> jax.Array:
    if cache is not None:
        raise ArgumentError("segment_ids with a cache", hint="a cache holds one sequence in each row")
    return segment_starts(segment_ids)
