"""The loss of a language model, without ever holding the logits of all tokens.

Tokens go through the head in groups. Where a gradient is wanted, it is computed group by group together with the loss,
while the group's logits exist: nothing is kept for a backward pass and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from easydel.errors import ArgumentError
from easydel.module import LanguageModel
from easydel.policy import Policy
from easydel.sharding.axes import names_in, size_over
from easydel.sharding.placement import fit
from easydel.train.summed import IGNORED, Summed
from easydel.tree import Tree

# B batch, T length, D model, N groups, P tokens of a sequence in one group
TOKENS = 512  # in a group, on one device: matrix products lose nothing, logits of 50,000 words take 100 MB
INPUTS = ("input_ids", "attention_mask", "position_ids", "segment_ids")
DECODED = ("decoder_input_ids", "decoder_attention_mask", "labels")  # what encoder-decoders take besides
MARKED = "global_attention_mask"  # and some of them this, of the encoder's shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """Sums over the `tokens` that count, in float32.

    `objective` is the sum to differentiate: `nll` (negative log likelihood in nats, without gradient) and the z-loss.
    """

    objective: jax.Array
    nll: jax.Array
    tokens: jax.Array


def loss_sums(
    model: LanguageModel,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    *,
    z_weight: float = 0.0,
    tokens: int = TOKENS,
) -> LossSums:
    """Returns the loss of predicting each next token of `batch`; as in transformers, `labels` are aligned with tokens.

    `batch` has `input_ids` [B, T] and perhaps `labels`, `attention_mask`, `position_ids`, `segment_ids` of the same
    shape. A label is a token, or -100 for none; without `labels`, they are the attended tokens that follow attended
    ones. Any other label makes the loss NaN. The last token of a segment predicts nothing.
    An encoder-decoder reads `input_ids` [B, S] and predicts `labels` [B, T]; its decoder reads `decoder_input_ids`, or
    else the labels moved right by one.
    `z_weight` times the squared log of the softmax's denominator is added (PaLM, arXiv:2204.02311: 1e-4). The logits
    of at most `tokens` tokens on each device exist at a time. The loss has first derivatives only, of `objective` only.
    """
    targets_BT = targets(model, batch)
    names = (*INPUTS, MARKED, *DECODED) if model.record.has_encoder else INPUTS
    inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    hidden_BTD, _ = model.bound(params).model(**inputs)
    parts = head_params(model, params)

    def head(parts: Tree, hidden_BPD: jax.Array) -> jax.Array:
        own = model.bound(parts)
        return own.record.logits(own.model, own.lm_head, hidden_BPD)

    groups = group_count(hidden_BTD.shape, model.policy, tokens)
    summed = Summed(head, model.policy, model.record.vocab, z_weight).differentiable()
    objective, nll = summed(parts, grouped(hidden_BTD, groups), grouped(targets_BT, groups, IGNORED))
    count = jnp.sum(targets_BT != IGNORED, dtype=jnp.float32)
    return LossSums(objective, jax.lax.stop_gradient(nll), count)


def causal_loss(
    model: LanguageModel,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    *,
    z_weight: float = 0.0,
    tokens: int = TOKENS,
) -> jax.Array:
    """The mean over the tokens that count of what `loss_sums` adds up, a number to differentiate: `step`'s `objective`,
    and without `z_weight` its `loss`. The arguments are those of `loss_sums`.
    """
    sums = loss_sums(model, params, batch, z_weight=z_weight, tokens=tokens)
    return sums.objective / jnp.maximum(sums.tokens, 1)


def targets(model: LanguageModel, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the token that each position of the decoder predicts, [B, T], or -100 for none."""
    if not model.record.has_encoder:
        return next_tokens(batch)
    if "labels" not in batch:
        raise ArgumentError("an encoder-decoder has no loss without labels", hint="pass what its decoder shall write")
    return batch["labels"]


def next_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the target of each position, [B, T]: the label after it, or -100 for none.

    The last position of a row or segment has no target. Without labels, padding is not predicted and predicts nothing.
    """
    labels_BT = batch.get("labels")
    next_BT = (batch["input_ids"] if labels_BT is None else labels_BT)[:, 1:]
    if labels_BT is None and (mask_BT := batch.get("attention_mask")) is not None:
        next_BT = jnp.where((mask_BT[:, 1:] != 0) & (mask_BT[:, :-1] != 0), next_BT, IGNORED)
    if (ids_BT := batch.get("segment_ids")) is not None:
        next_BT = jnp.where(ids_BT[:, 1:] == ids_BT[:, :-1], next_BT, IGNORED)
    return jnp.pad(next_BT, ((0, 0), (0, 1)), constant_values=IGNORED)


def head_params(model: LanguageModel, params: Mapping[str, Any]) -> Tree:
    """Returns the part of `params` that turns hidden states into logits."""
    parts: Tree = {"lm_head": params["lm_head"]} if "lm_head" in params else {}
    if model.record.head.tied:
        shared = "embed_tokens" in params["model"]
        table = params["model"] if shared else params["model"]["decoder"]
        own = {"embed_tokens": table["embed_tokens"]}
        parts["model"] = own if shared else {"decoder": own}
    return parts


def group_count(shape: tuple[int, ...], policy: Policy, tokens: int) -> int:
    """Returns the number of groups that put at most `tokens` tokens (or one per sequence) of [B, T, D] on a device."""
    B, T = shape[:2]
    split = 1
    if policy.mesh is not None:
        axes = fit((B, T), (policy.axes.batch_axis, policy.axes.sequence_axis), policy.mesh)
        split = size_over((name for axis in axes for name in names_in(axis)), policy.mesh)
    return min(T, -(-B * T // (split * tokens)))


def grouped(x: jax.Array, groups: int, padding: int = 0) -> jax.Array:
    """Returns [B, T, ...] as [N, B, P, ...].

    Group n has every N-th token from the n-th on, so that each device of a mesh that splits sequences has an equal
    share of every group.
    """
    B, T = x.shape[:2]
    more = [(0, 0)] * x.ndim
    more[1] = (0, -T % groups)
    padded = jnp.pad(x, more, constant_values=padding)
    return jnp.moveaxis(padded.reshape(B, -1, groups, *x.shape[2:]), 2, 0)
