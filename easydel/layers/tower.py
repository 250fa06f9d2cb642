"""From token ids to hidden states: embeddings, layers, and a norm. Decoders and encoders are towers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ArgumentError
from easydel.layers.block import Block, Flow, normed
from easydel.layers.context import Context
from easydel.layers.embed import Embed
from easydel.layers.linear import Embedding, Linear
from easydel.layers.norm import AnyNorm
from easydel.layers.part import Part
from easydel.layers.stack import build_layers, run_layer, run_layers
from easydel.policy import Policy

# B batch, T length of this call, D model
# From vectors [B, T, D] in place of tokens' own, and how many positions they are ahead, to the embeddings' output.
Embedded = Callable[[jax.Array, int], jax.Array]


class PerLayer(Protocol):
    """A record of inputs for every layer, besides the hidden states that pass from layer to layer (Gemma 3n).

    Its module maps (ids [B, T], embeddings' output [B, T, D], context) to named arrays [layers, B, T, ...].
    """

    def build(self, features: int, layers: int, policy: Policy) -> Any: ...


class Stream(Protocol):
    """A record of the values between layers, where they are more than [B, T, D] (AltUp, hyper-connections).

    Its module has `open`, from the embeddings' output to the flow, whose "x" may have any shape [B, T, ..., D], and
    `close`, from the flow to [B, T, D]. The blocks of such a model are written for that flow. `open` also gets the
    embeddings themselves, for vectors that stand beside those of tokens.
    """

    def build(self, features: int, policy: Policy) -> Any: ...


class TowerRecord(Protocol):
    """The records that a tower is made of."""

    @property
    def blocks(self) -> tuple[Block, ...]: ...
    @property
    def embed(self) -> Embed: ...
    @property
    def final_norm(self) -> AnyNorm | None: ...
    @property
    def per_layer(self) -> PerLayer | None: ...
    @property
    def stream(self) -> Stream | None: ...


class TowerModel(nnx.Module):
    """The parameters of a tower: token vectors of `vocab` rows (None: another tower's are used), layers, and a norm."""

    def __init__(self, record: TowerRecord, vocab: int | None, features: int, policy: Policy):
        embed = record.embed
        width = embed.width or features
        inner = features if embed.projected == "before" else width
        self.embed_tokens = None if vocab is None else Embedding(vocab, width, policy, words=True)
        self.embed_positions = None if embed.positions is None else embed.positions.build(inner, policy)
        self.embed_types = Embedding(embed.types, inner, policy) if embed.types else None
        self.embed_tasks = Embedding(embed.tasks, inner, policy) if embed.tasks else None
        self.embed_layernorm = None if embed.norm is None else embed.norm.build(inner, policy)
        for feature in embed.features:
            setattr(self, feature.name, Embedding(feature.rows, feature.width, policy))
        read = width + sum(feature.width for feature in embed.features)
        self.project_in = None if read == features else Linear(read, features, policy, bias=embed.bias)
        for name, part in shared_parts(record.blocks).items():
            setattr(self, name, part.build(features, policy))
        if record.per_layer is not None:
            self.per_layer = record.per_layer.build(features, len(record.blocks), policy)
        if record.stream is not None:
            self.stream = record.stream.build(features, policy)
        self.layers = build_layers(record.blocks, features, policy)
        self.norm = None if record.final_norm is None else record.final_norm.build(features, policy)
        self.tower, self.policy = record, policy

    def enter(
        self,
        ids_BT: jax.Array | None,
        context: Context,
        tokens: Embedding | None = None,
        types_BT: jax.Array | None = None,
        embedded_BTD: jax.Array | None = None,
    ) -> tuple[Flow, Context]:
        """Returns the first layer's input and the layers' context. `tokens` are another tower's token vectors.

        Without ids, `embedded_BTD` are the vectors. Raises ArgumentError if some layer reads ids all the same.
        """
        blocks = self.tower.blocks
        reads = {name for block in blocks for name in block.reads()}
        if ids_BT is None and ("ids_BT" in reads or self.tower.per_layer is not None):
            raise ArgumentError("inputs_embeds without ids: layers of this model read ids", hint="pass input_ids")
        if embedded_BTD is None:
            tokens = self.embed_tokens if tokens is None else tokens
            assert tokens is not None
            assert ids_BT is not None
            x_BTD = tokens(ids_BT)
        else:
            x_BTD = embedded_BTD.astype(self.policy.dtype)
        x_BTD = self._embedded(x_BTD, context.positions_BT, types_BT)
        context = replace(
            context.with_angles(rope for block in blocks for rope in block.ropes()),
            ids_BT=ids_BT if "ids_BT" in reads else None,
            entered_BTD=x_BTD if "entered_BTD" in reads else None,
            shared={name: getattr(self, name) for name in shared_parts(blocks)},
            each={} if self.tower.per_layer is None or ids_BT is None else self.per_layer(ids_BT, x_BTD, context),
        )
        if self.tower.stream is None:
            return {"x": x_BTD}, context
        return self.stream.open(x_BTD, partial(self._ahead, positions_BT=context.positions_BT)), context

    def run(self, flow: Flow, context: Context, caches: Any) -> tuple[Flow, Any]:
        """Returns the flow after the last layer, and the layers' caches (None in, None out)."""
        return run_layers(self.layers, self.tower.blocks, self.policy, flow, context, caches)

    def run_one_by_one(self, flow: Flow, context: Context, caches: Any, between: list[jax.Array]) -> tuple[Flow, Any]:
        """Runs the layers as `run` does, and appends to `between` the first one's input and each one's output."""
        if self.policy.scan_layers or self.tower.stream is not None:
            problem = "stacked layers" if self.policy.scan_layers else "a model with several streams"
            raise ArgumentError(f"output_hidden_states is not implemented for {problem}", hint="load it unstacked")
        between.append(flow["x"])
        new = []
        for number, layer in enumerate(self.layers):
            own = None if caches is None else [caches[number]]
            flow, cache = run_layer(layer, number, self.policy, flow, context, own)
            new.append(cache[0] if cache else None)
            between.append(flow["x"])
        return flow, None if caches is None else new

    def leave(self, flow: Flow, *, last: bool = False) -> jax.Array:
        """Returns hidden states [B, T, D] from the flow after the last layer; with `last`, of the last token alone."""
        x_BTD = flow["x"] if self.tower.stream is None else self.stream.close(flow)
        return normed(self.norm, x_BTD[:, -1:] if last else x_BTD)

    def _ahead(self, vectors_BTD: jax.Array, ahead: int, *, positions_BT: jax.Array) -> jax.Array:
        return self._embedded(vectors_BTD, positions_BT + ahead, None)

    def _embedded(self, x_BTD: jax.Array, positions_BT: jax.Array, types_BT: jax.Array | None) -> jax.Array:
        record = self.tower.embed
        if record.scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(record.scale, x_BTD.dtype)
        if record.features:
            first = [getattr(self, feature.name)(jnp.zeros_like(positions_BT)) for feature in record.features]
            x_BTD = jnp.concatenate([x_BTD, *first], axis=-1)
        if self.project_in is not None and record.projected == "before":
            x_BTD = self.project_in(x_BTD)
        if record.normed == "tokens":
            x_BTD = normed(self.embed_layernorm, x_BTD)
        if self.embed_positions is not None and record.positions is not None:
            x_BTD = x_BTD + self.embed_positions(positions_BT + record.positions.offset)
        if self.embed_types is not None:
            x_BTD = x_BTD + self.embed_types(jnp.zeros_like(positions_BT) if types_BT is None else types_BT)
        if self.embed_tasks is not None:
            x_BTD = x_BTD + self.embed_tasks(jnp.zeros_like(positions_BT))
        if record.normed == "all":
            x_BTD = normed(self.embed_layernorm, x_BTD)
        if self.project_in is not None and record.projected == "after":
            x_BTD = self.project_in(x_BTD)
        return self.policy.shard_hidden(x_BTD.astype(jnp.float32) if record.float32 else x_BTD)


def shared_parts(blocks: Sequence[Block]) -> dict[str, Part]:
    """Returns the parts whose parameters several layers share, by their names in the model."""
    found: dict[str, Part] = {}
    for block in blocks:
        for name, part in block.shares():
            assert found.setdefault(name, part) == part, f"two parts are called {name}"
    return found
