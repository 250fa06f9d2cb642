"""The encoder-decoder language model: two towers of blocks, the second attending to the output of the first.

To generate, the encoder runs once, and so do the projections of its output to cross-attention's keys and values:

    states = model.compiled(encode)(params, input_ids, attention_mask)      # [B, S, D]
    cache = model.init_cache(batch, length)                                 # room for `length` decoder tokens
    out = model.apply(params, None, attention_mask, encoder_outputs=states, decoder_input_ids=start, cache=cache)
    out = model.apply(params, decoder_input_ids=next_token, cache=out.cache)  # from now on the cache is enough

The first call may get `input_ids` in place of `encoder_outputs`. It puts keys, values and the encoder's mask into the
cache; after it the cache keeps its structure and shapes, so that a loop can carry it. Every array in it but `offset`
has the batch in front (after the layers, where those are scanned).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easydel.decoder import Cache, check_positions, make_context, unless_full
from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.layers.block import Block
from easydel.layers.context import Context, Cross
from easydel.layers.embed import Embed, Head
from easydel.layers.linear import Embedding
from easydel.layers.norm import AnyNorm
from easydel.layers.relative import RelativeBias
from easydel.layers.stack import build_layers, layer_caches, run_layers
from easydel.policy import Policy

# B batch, S encoder tokens, T decoder tokens, D model
NO_LABEL = -100  # what Hugging Face's data collators put where no loss is wanted


@dataclass(frozen=True)
class Tower:
    """The encoder or the decoder. `relative` biases are shared by all its layers."""

    blocks: tuple[Block, ...]
    embed: Embed
    final_norm: AnyNorm | None = None
    relative: RelativeBias | None = None


@dataclass(frozen=True)
class ShiftRight:
    """Decoder inputs where none are given: `labels` moved right by one, behind token `first`.

    `padding` stands where labels have none. `from_inputs`: without labels, the encoder's inputs are moved (BART).
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
        first = jnp.full((tokens_BT.shape[0], 1), self.first, tokens_BT.dtype)
        shifted_BT = jnp.concatenate([first, tokens_BT[:, :-1]], axis=1)
        return jnp.where(shifted_BT == NO_LABEL, self.padding or 0, shifted_BT)


@dataclass(frozen=True)
class EncoderDecoder:
    """What a family makes of its config. Where not `shared`, each tower has token vectors of its own."""

    vocab: int
    features: int
    encoder: Tower
    decoder: Tower
    head: Head
    shift: ShiftRight
    shared: bool = True
    max_length: int | None = None

    def __post_init__(self) -> None:
        assert self.shared or not self.head.tied, "the head is tied to the shared token vectors"

    @property
    def layer_stacks(self) -> dict[str, tuple[Block, ...]]:
        """Where the layers' parameters are."""
        return {"model/encoder/layers": self.encoder.blocks, "model/decoder/layers": self.decoder.blocks}

    def distinct(self) -> EncoderDecoder:
        """The same model with each kind of layer once: enough to see whether it can run at all."""
        encoder, decoder = (
            replace(tower, blocks=tuple(dict.fromkeys(tower.blocks))) for tower in (self.encoder, self.decoder)
        )
        return replace(self, encoder=encoder, decoder=decoder)

    @property
    def longest(self) -> int | None:
        """Positions beyond which there are no vectors to look up; None where positions are computed."""
        tables = [tower.embed.positions for tower in (self.encoder, self.decoder)]
        return min((table.rows for table in tables if table is not None), default=None)

    @staticmethod
    def example(inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a forward pass, given `input_ids`."""
        return {**inputs, "decoder_input_ids": inputs["input_ids"]}

    def build(self, policy: Policy) -> EncoderDecoderModel:
        return EncoderDecoderModel(self, policy)

    def logits(self, model: EncoderDecoderModel, lm_head: Any, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, vocab] in the computation dtype."""
        return self.head.logits(lm_head, model.embed_tokens, hidden_BTD)

    def cache(self, batch: int, length: int, policy: Policy) -> Cache:
        """Room for `length` decoder tokens; the first call adds what cross-attention needs."""
        return {
            "layers": layer_caches(self.decoder.blocks, batch, length, policy),
            "offset": np.zeros((), np.int32),  # known in the trace that makes it: nothing is before it
            "valid": jnp.zeros((batch, length), bool),
            "cross_valid": None,
        }


class EncoderDecoderModel(nnx.Module):
    """Everything but the head. Gives the decoder's hidden states [B, T, D] and the new cache."""

    def __init__(self, record: EncoderDecoder, policy: Policy):
        own = None if record.shared else record.vocab
        self.embed_tokens = Embedding(record.vocab, record.features, policy) if record.shared else None
        self.encoder = TowerLayers(record.encoder, own, record.features, policy)
        self.decoder = TowerLayers(record.decoder, own, record.features, policy)
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
    ) -> tuple[jax.Array, Cache | None]:
        """`input_ids`, `attention_mask` and `position_ids` are the encoder's. `encoder_outputs` [B, S, D] spare running
        it; a `cache` that earlier calls filled spares both. `segment_ids` are refused."""
        if segment_ids is not None:
            hint = "pass one document in each row"
            raise UnsupportedModelError("segment_ids are not implemented for encoder-decoders", hint=hint)
        if decoder_input_ids is None:
            decoder_input_ids = self.record.shift(input_ids, labels)
        if encoder_outputs is None and input_ids is not None:
            encoder_outputs = self.encode(input_ids, attention_mask, position_ids)
        cross = _cross(encoder_outputs, attention_mask, cache)
        shape, mask_name = decoder_input_ids.shape, "decoder_attention_mask"
        context, cache = make_context(shape, decoder_attention_mask, None, cache, mask_name=mask_name)
        layers = None if cache is None else cache["layers"]
        x_BTD, layers = self.decoder(decoder_input_ids, self.embed_tokens, replace(context, cross=cross), layers)
        if cache is None:
            return x_BTD, None
        return unless_full(x_BTD, cache), {**cache, "layers": layers, "cross_valid": cross.valid_BS}

    def encode(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, position_ids: jax.Array | None = None
    ) -> jax.Array:
        """The encoder's hidden states [B, S, D]."""
        context, _ = make_context(input_ids.shape, attention_mask, position_ids, None)
        return self.encoder(input_ids, self.embed_tokens, replace(context, causal=False), None)[0]


def _cross(states_BSD: jax.Array | None, attention_mask: jax.Array | None, cache: Cache | None) -> Cross:
    """What cross-attention sees; without `states_BSD`, what the cache keeps."""
    if states_BSD is None:
        if cache is None or cache["cross_valid"] is None:
            raise ArgumentError("there is nothing to attend to", hint="pass input_ids, encoder_outputs or a used cache")
        return Cross(None, cache["cross_valid"])
    if attention_mask is None:
        # a cache always holds a mask: its structure must not depend on the first call's arguments
        return Cross(states_BSD, None if cache is None else jnp.ones(states_BSD.shape[:2], bool))
    return Cross(states_BSD, attention_mask.astype(bool))


class TowerLayers(nnx.Module):
    """A tower's parameters; `own` rows of token vectors, or None where those are shared."""

    def __init__(self, record: Tower, own: int | None, features: int, policy: Policy):
        embed = record.embed
        self.embed_tokens = None if own is None else Embedding(own, features, policy)
        self.embed_positions = None if embed.positions is None else embed.positions.build(features, policy)
        self.embed_layernorm = None if embed.norm is None else embed.norm.build(features, policy)
        self.relative_attention_bias = None if record.relative is None else record.relative.build(policy)
        self.layers = build_layers(record.blocks, features, policy)
        self.norm = None if record.final_norm is None else record.final_norm.build(features, policy)
        self.record, self.policy = record, policy

    def __call__(
        self, ids_BT: jax.Array, shared: Embedding | None, context: Context, caches: Any
    ) -> tuple[jax.Array, Any]:
        positions = self.record.embed.positions
        check_positions(ids_BT.shape[1], None if positions is None else positions.rows, context)
        x_BTD = self._embed(self.embed_tokens if shared is None else shared, ids_BT, context.positions_BT)
        if self.relative_attention_bias is not None:
            slots = ids_BT.shape[1] if context.valid_BS is None else context.valid_BS.shape[1]
            context = replace(context, bias=self.relative_attention_bias(slots, context.offset))
        x_BTD, caches = run_layers(self.layers, self.record.blocks, self.policy, x_BTD, context, caches)
        return x_BTD if self.norm is None else self.norm(x_BTD), caches

    def _embed(self, tokens: Embedding | None, ids_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        assert tokens is not None
        record, x_BTD = self.record.embed, tokens(ids_BT)
        if record.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(record.scale, x_BTD.dtype)
        if self.embed_positions is not None and record.positions is not None:
            x_BTD = x_BTD + self.embed_positions(positions_BT + record.positions.offset)
        return self.policy.shard_hidden(x_BTD if self.embed_layernorm is None else self.embed_layernorm(x_BTD))


def encode(
    model: Any, params: Mapping[str, Any], input_ids: jax.Array, attention_mask: jax.Array | None = None
) -> jax.Array:
    """The hidden states [B, S, D] of a model's encoder: a pure function of parameters and inputs, for `compiled`."""
    return model.bound(params).model.encode(input_ids, attention_mask)
