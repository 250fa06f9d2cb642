"""The encoder-decoder language model: two towers of blocks, the second attending to the output of the first.

To generate, run the encoder once; its keys and values for cross-attention are also computed once:

    states = model.compiled(encode)(params, input_ids, attention_mask)      # [B, S, D]
    cache = model.init_cache(batch, length)                                 # room for `length` decoder tokens
    out = model.apply(params, None, attention_mask, encoder_outputs=states, decoder_input_ids=start, cache=cache)
    out = model.apply(params, decoder_input_ids=next_token, cache=out.cache)  # from now on the cache is enough

The first call may get `input_ids` in place of `encoder_outputs`. It puts keys, values and the encoder's mask into the
cache. After it the cache keeps its structure and shapes, so that a loop can carry it. Every array in the cache except
`offset` starts with the batch dimension (after the dimension of layers, where layers are scanned).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.decoder import Cache, check_positions, empty_slots, make_context, refuse_packed, unless_full
from easydel.errors import ArgumentError
from easydel.inputs import check_shapes
from easydel.layers.block import Block
from easydel.layers.context import Context, Cross
from easydel.layers.embed import Embed, Head
from easydel.layers.linear import Embedding, Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import least
from easydel.layers.stack import layer_caches
from easydel.layers.tower import PerLayer, Stream, TowerModel
from easydel.policy import Policy

# B batch, S encoder tokens, T decoder tokens, D model
NO_LABEL = -100  # the value that Hugging Face's data collators use where no loss is wanted


@dataclass(frozen=True)
class Tower:
    """The encoder or the decoder. `vocab` and `features` are its own, if they differ from the model's."""

    blocks: tuple[Block, ...]
    embed: Embed
    final_norm: AnyNorm | None = None
    vocab: int | None = None
    features: int | None = None
    per_layer: PerLayer | None = None
    stream: Stream | None = None


@dataclass(frozen=True)
class ShiftRight:
    """Decoder inputs for calls that give none: `labels` moved right by one, after token `first`.

    `padding` replaces labels that are missing. `from_inputs`: without labels, the encoder's inputs are moved (BART).
    """

    first: int | None
    padding: int | None
    from_inputs: bool = False

    def __call__(self, input_ids: jax.Array | None, labels: jax.Array | None) -> jax.Array:
        tokens_BT = labels if labels is not None else input_ids if self.from_inputs else None
        if tokens_BT is None:
            raise ArgumentError(
                "decoder_input_ids is missing", hint=f"pass what is decoded so far; it starts with token {self.first}"
            )
        if self.first is None:
            raise ArgumentError("the config has no decoder_start_token_id", hint="pass decoder_input_ids")
        tokens_BT = jnp.asarray(tokens_BT)  # NumPy's integers have 64 bits
        first = jnp.full((tokens_BT.shape[0], 1), self.first, tokens_BT.dtype)
        shifted_BT = jnp.concatenate([first, tokens_BT[:, :-1]], axis=1)
        return jnp.where(shifted_BT == NO_LABEL, self.padding or 0, shifted_BT)


@dataclass(frozen=True)
class WrapLast:
    """Decoder inputs if none are given: `labels`, or else the encoder's inputs, moved right by one (mBART).

    The last token of a row that is not `padding` names the language and comes first. `generate` starts with `first`.
    """

    first: int | None
    padding: int

    def __call__(self, input_ids: jax.Array | None, labels: jax.Array | None) -> jax.Array:
        tokens_BT = input_ids if labels is None else jnp.where(labels == NO_LABEL, self.padding, labels)
        if tokens_BT is None:
            raise ArgumentError("decoder_input_ids is missing", hint="pass what is decoded so far")
        last_B1 = jnp.sum(tokens_BT != self.padding, axis=1, keepdims=True) - 1
        return jnp.concatenate([jnp.take_along_axis(tokens_BT, last_B1, axis=1), tokens_BT[:, :-1]], axis=1)


@dataclass(frozen=True)
class EncoderDecoder:
    """The record of a whole model, made by a family from its config. Unless `shared`, each tower has its own table.

    `vocab` is the decoder's and the head's. A tied head uses the decoder's table. `projected`: a projection makes the
    encoder's output as wide as the decoder, before cross-attention.
    """

    vocab: int
    features: int
    encoder: Tower
    decoder: Tower
    head: Head
    shift: ShiftRight | WrapLast
    shared: bool = True
    projected: bool = False
    max_length: int | None = None
    fed: ClassVar[str] = "decoder_input_ids"
    has_encoder: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = False  # its decoder does not

    def __post_init__(self) -> None:
        assert not self.shared or not (self.encoder.vocab or self.decoder.vocab), "a shared table has one size"

    @property
    def first_token(self) -> int | None:
        """The token that decoding starts with."""
        return self.shift.first

    @property
    def vectors_at(self) -> str:
        """The module whose vectors a tied head has."""
        return "model.embed_tokens" if self.shared else "model.decoder.embed_tokens"

    def vocab_of(self, name: str) -> int:
        """Returns the number of tokens that the input `name` is chosen from."""
        return self.encoder.vocab or self.vocab if name == "input_ids" else self.vocab

    def longest_of(self, name: str) -> int | None:
        """Returns the number of positions that there are vectors for in the tower that reads the input `name`."""
        return self.encoder.embed.longest if name == "input_ids" else self.longest

    @property
    def layer_stacks(self) -> dict[str, tuple[Block, ...]]:
        """The layers' records, by the place of their parameters."""
        return {"model/encoder/layers": self.encoder.blocks, "model/decoder/layers": self.decoder.blocks}

    def rewinds(self, length: int, end: int) -> int | None:
        """Number of slots one can go back, as in `Decoder`."""
        return least(block.rewinds(length, end) for block in dict.fromkeys(self.decoder.blocks))

    def distinct(self) -> EncoderDecoder:
        """Returns the same model with each kind of layer once: enough to see whether it can run at all."""
        encoder, decoder = (
            replace(tower, blocks=tuple(dict.fromkeys(tower.blocks))) for tower in (self.encoder, self.decoder)
        )
        return replace(self, encoder=encoder, decoder=decoder)

    @property
    def longest(self) -> int | None:
        """Number of positions that the decoder has vectors for; None if positions are computed."""
        return self.decoder.embed.longest

    @property
    def marks(self) -> bool:
        """True if the encoder takes a `global_attention_mask`."""
        return any("marked_BT" in block.reads() for block in self.encoder.blocks)

    @staticmethod
    def example(inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the inputs of a forward pass, given `input_ids`."""
        return {**inputs, "decoder_input_ids": inputs["input_ids"]}

    def build(self, policy: Policy) -> EncoderDecoderModel:
        return EncoderDecoderModel(self, policy)

    def logits(self, model: EncoderDecoderModel, lm_head: Any, hidden_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, T, vocab] in the computation dtype."""
        tokens = model.embed_tokens if self.shared else model.decoder.embed_tokens
        return self.head.logits(lm_head, tokens, hidden_BTD)

    def cache(self, batch: int, length: int, policy: Policy) -> Cache:
        """Returns room for `length` decoder tokens; the first call adds cross-attention's keys and values."""
        layers = layer_caches(self.decoder.blocks, batch, length, policy)
        return {"layers": layers, **empty_slots(batch, length), "cross_valid": None}


class EncoderDecoderModel(nnx.Module):
    """Everything but the head. Returns the decoder's hidden states [B, T, D] and the new cache."""

    def __init__(self, record: EncoderDecoder, policy: Policy):
        def tower(own: Tower) -> TowerModel:
            vocab = None if record.shared else own.vocab or record.vocab
            return TowerModel(own, vocab, own.features or record.features, policy)

        self.embed_tokens = Embedding(record.vocab, record.features, policy, words=True) if record.shared else None
        self.encoder, self.decoder = tower(record.encoder), tower(record.decoder)
        states = record.encoder.features or record.features
        self.project_states = Linear(states, record.features, policy, bias=True) if record.projected else None
        self.record, self.policy = record, policy

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        *,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        encoder_outputs: jax.Array | None = None,
        labels: jax.Array | None = None,
        cache: Cache | None = None,
        segment_ids: jax.Array | None = None,
        global_attention_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the decoder's hidden states and the new cache.

        `input_ids`, `attention_mask` and `position_ids` belong to the encoder, and so does `global_attention_mask`: the
        tokens that see all others and are seen by all. With `encoder_outputs` [B, S, D] the encoder is not run; with a
        `cache` that earlier calls filled neither is needed. `segment_ids` are refused.
        """
        if segment_ids is not None:
            refuse_packed(["encoder-decoders"])
        if decoder_input_ids is None:
            decoder_input_ids = self.record.shift(input_ids, labels)
        if encoder_outputs is None and input_ids is not None:
            encoder_outputs = self.encode(input_ids, attention_mask, position_ids, global_attention_mask)
        elif global_attention_mask is not None:
            raise ArgumentError(
                "global_attention_mask is for the encoder, which does not run", hint="pass input_ids alone"
            )
        if encoder_outputs is not None and self.project_states is not None:
            encoder_outputs = self.project_states(encoder_outputs)
        cross = _cross(encoder_outputs, attention_mask, cache)
        shape, mask_name = decoder_input_ids.shape, "decoder_attention_mask"
        context, cache = make_context(shape, decoder_attention_mask, None, cache, mask_name=mask_name)
        layers = None if cache is None else cache["layers"]
        x_BTD, layers = self._pass(self.decoder, decoder_input_ids, replace(context, cross=cross), layers)
        if cache is None:
            return x_BTD, None
        return unless_full(x_BTD, cache), {**cache, "layers": layers, "cross_valid": cross.valid_BS}

    def encode(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        global_attention_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the encoder's hidden states [B, S, D]."""
        context, _ = make_context(input_ids.shape, attention_mask, position_ids, None)
        if global_attention_mask is not None:
            if not self.record.marks:
                hint = "its tokens see all others in any case, or none may"
                raise ArgumentError("the model takes no global_attention_mask", hint=hint)
            check_shapes(input_ids.shape, {"global_attention_mask": global_attention_mask}, cached=False)
            marked_BT = global_attention_mask.astype(bool)
            marked_BT = marked_BT if context.valid_BT is None else marked_BT & context.valid_BT
            context = replace(context, marked_BT=marked_BT)
        return self._pass(self.encoder, input_ids, context, None)[0]

    def _pass(self, tower: TowerModel, ids_BT: jax.Array, context: Context, caches: Any) -> tuple[jax.Array, Any]:
        check_positions(ids_BT.shape[1], tower.tower.embed.longest, context)
        flow, context = tower.enter(ids_BT, context, self.embed_tokens)
        flow, caches = tower.run(flow, context, caches)
        return tower.leave(flow), caches


def _cross(states_BSD: jax.Array | None, attention_mask: jax.Array | None, cache: Cache | None) -> Cross:
    """Returns the input of cross-attention; without `states_BSD` the cache holds its keys and values."""
    if states_BSD is None:
        if cache is None or cache["cross_valid"] is None:
            raise ArgumentError("there is nothing to attend to", hint="pass input_ids, encoder_outputs or a used cache")
        return Cross(None, cache["cross_valid"])
    if attention_mask is None:
        # a cache always holds a mask: its structure must not depend on the first call's arguments
        return Cross(states_BSD, None if cache is None else jnp.ones(states_BSD.shape[:2], bool))
    return Cross(states_BSD, attention_mask.astype(bool))


def encode(
    model: Any,
    params: Mapping[str, Any],
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    global_attention_mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the encoder's hidden states [B, S, D], as a pure function of parameters and inputs, for `compiled`."""
    return model.bound(params).model.encode(input_ids, attention_mask, None, global_attention_mask)
