"""The loss of a causal language model, without ever holding the logits of all tokens.

Tokens go through the head in groups. Where a gradient is wanted, each group's is computed together with its loss, while
its logits are there: nothing is kept for a backward pass and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from easydel.errors import UnsupportedModelError
from easydel.module import LanguageModel
from easydel.policy import Policy
from easydel.sharding.axes import names_in
from easydel.sharding.placement import fit
from easydel.tree import Tree, flatten, unflatten

# B batch, T length, D model, V vocabulary, N groups, P tokens of a sequence in one group
IGNORED = -100  # what Hugging Face's data collators put where no loss is wanted
TOKENS = 512  # in a group, on one device: matrix products lose nothing, logits of 50,000 words take 100 MB
INPUTS = ("input_ids", "attention_mask", "position_ids", "segment_ids")
Head = Callable[[Tree, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """Sums over the tokens that count, in float32.

    `objective` is what to differentiate: `nll` (negative log likelihood in nats, without gradient) and the z-loss.
    """

    objective: jax.Array
    nll: jax.Array
    tokens: jax.Array


def causal_loss(
    model: LanguageModel,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    *,
    z_weight: float = 0.0,
    tokens: int = TOKENS,
) -> Loss:
    """How badly the tokens of `batch` predict the next ones; as in transformers, `labels` are those of the same token.

    `batch` has `input_ids` [B, T] and perhaps `labels`, `attention_mask`, `position_ids`, `segment_ids` of the same
    shape. A label is a token, or -100 for none; without `labels`, they are the attended tokens that follow attended
    ones. Any other label makes the loss NaN. The last token of a segment predicts nothing.
    `z_weight` times the squared log of the softmax's denominator is added (PaLM, arXiv:2204.02311: 1e-4). The logits
    of at most `tokens` tokens on each device exist at a time. Only first derivatives, and only of `objective`.
    """
    check_causal(model)
    inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
    hidden_BTD, _ = model.bound(params).model(**inputs)
    targets_BT = next_tokens(batch)
    parts = head_params(model, params)

    def head(parts: Tree, hidden_BPD: jax.Array) -> jax.Array:
        own = model.bound(parts)
        return own.record.logits(own.model, own.lm_head, hidden_BPD)

    groups = group_count(hidden_BTD.shape, model.policy, tokens)
    objective, nll = _summed(head, model.policy, z_weight)(
        parts, grouped(hidden_BTD, groups), grouped(targets_BT, groups, IGNORED)
    )
    count = jnp.sum(targets_BT != IGNORED, dtype=jnp.float32)
    return Loss(objective, jax.lax.stop_gradient(nll), count)


def check_causal(model: LanguageModel) -> None:
    """UnsupportedModelError for encoder-decoders: what they predict is not the next token of their input."""
    if model.record.has_encoder:
        raise UnsupportedModelError(
            f"{model.config.get('model_type')} is an encoder-decoder: only causal language models can be trained",
            hint="differentiate model.apply with a loss of your own",
        )


def next_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """What each position should predict [B, T]: the label after it; -100 for the last of a row or segment, and where
    there is none. Without labels, padding neither is predicted nor predicts."""
    labels_BT = batch.get("labels")
    next_BT = (batch["input_ids"] if labels_BT is None else labels_BT)[:, 1:]
    if labels_BT is None and (mask_BT := batch.get("attention_mask")) is not None:
        next_BT = jnp.where((mask_BT[:, 1:] != 0) & (mask_BT[:, :-1] != 0), next_BT, IGNORED)
    if (ids_BT := batch.get("segment_ids")) is not None:
        next_BT = jnp.where(ids_BT[:, 1:] == ids_BT[:, :-1], next_BT, IGNORED)
    return jnp.pad(next_BT, ((0, 0), (0, 1)), constant_values=IGNORED)


def zero() -> jax.Array:
    """A float32 also where JAX's own default is float64."""
    return jnp.zeros((), jnp.float32)


def head_params(model: LanguageModel, params: Mapping[str, Any]) -> Tree:
    """The part of `params` that turns hidden states into logits."""
    parts: Tree = {"lm_head": params["lm_head"]} if "lm_head" in params else {}
    if model.record.head.tied:
        parts["model"] = {"embed_tokens": params["model"]["embed_tokens"]}
    return parts


def group_count(shape: tuple[int, ...], policy: Policy, tokens: int) -> int:
    """How many groups make at most `tokens` tokens (or one of each sequence) of [B, T, D] for each device."""
    B, T = shape[:2]
    split = 1
    if policy.mesh is not None:
        axes = fit((B, T), (policy.axes.batch_axis, policy.axes.sequence_axis), policy.mesh)
        split = math.prod(policy.mesh.shape[name] for axis in axes for name in names_in(axis))
    return min(T, -(-B * T // (split * tokens)))


def grouped(x: jax.Array, groups: int, padding: int = 0) -> jax.Array:
    """[B, T, ...] as [N, B, P, ...]. Group n has every N-th token from the n-th on, so that each device of a mesh whose
    sequences are split has an equal share of every group."""
    B, T = x.shape[:2]
    more = [(0, 0)] * x.ndim
    more[1] = (0, -T % groups)
    padded = jnp.pad(x, more, constant_values=padding)
    return jnp.moveaxis(padded.reshape(B, -1, groups, *x.shape[2:]), 2, 0)


def token_losses(logits: jax.Array, targets: jax.Array, z_weight: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Objective and negative log likelihood [...], and the gradient of the first by `logits` [..., V]; all float32."""
    logits = logits.astype(jnp.float32)  # sums over a vocabulary lose too much in 16 bits
    counts = targets != IGNORED
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    known = jnp.where(counts & ((targets < 0) | (targets >= logits.shape[-1])), jnp.nan, 1.0)
    top = jnp.max(logits, axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)  # as in logsumexp: an infinite logit makes the loss infinite, not NaN
    # XLA's CPU compiler would make the exponentials within their sum, at a tenth of the speed
    weights = jax.lax.optimization_barrier(jnp.exp(logits - top))
    summed = jnp.sum(weights, axis=-1)
    total = jnp.log(summed) + top[..., 0]
    nll = jnp.where(counts, (total - jnp.sum(jnp.where(chosen, logits, 0), axis=-1)) * known, 0)
    objective = nll + jnp.where(counts, z_weight * total**2, 0)
    gradient = weights * ((1 + 2 * z_weight * total) / summed)[..., None] - chosen
    return objective, nll, jnp.where(counts[..., None], gradient, 0)


def _summed(head: Head, policy: Policy, z_weight: float) -> Any:
    """A function of the head's parameters, hidden states [N, B, P, D] and targets [N, B, P]: the sums of objective and
    negative log likelihood; its gradient is made on the way."""

    def logits_of(params: Tree, hidden_BPD: jax.Array) -> jax.Array:
        axes = policy.axes
        logits = head(params, policy.shard_hidden(hidden_BPD))
        return policy.shard(logits, axes.batch_axis, axes.sequence_axis, axes.vocab_axis)

    @jax.custom_vjp
    def summed(params: Tree, hidden_NBPD: jax.Array, targets_NBP: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(sums: tuple[jax.Array, jax.Array], group: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            objective, nll, _ = token_losses(logits_of(params, group[0]), group[1], z_weight)
            return (sums[0] + jnp.sum(objective), sums[1] + jnp.sum(nll)), None

        return jax.lax.scan(add, (zero(), zero()), (hidden_NBPD, targets_NBP))[0]

    def forward(params: Tree, hidden: Any, targets: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
        leaves = flatten(params)  # each says whether it is differentiated by: a frozen head gets no gradient
        wanted = {path: leaf.value for path, leaf in leaves.items() if leaf.perturbed}
        fixed = {path: leaf.value for path, leaf in leaves.items() if not leaf.perturbed}

        def add(carry: Any, group: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            sums, gradients = carry
            logits, back = jax.vjp(lambda own, x: logits_of(unflatten(own | fixed), x), wanted, group[0])
            objective, nll, by_logits = token_losses(logits, group[1], z_weight)
            more, by_hidden = back(by_logits.astype(logits.dtype))  # the head's own products run in its dtype
            gradients = {path: gradients[path] + more[path].astype(jnp.float32) for path in gradients}
            return ((sums[0] + jnp.sum(objective), sums[1] + jnp.sum(nll)), gradients), by_hidden

        # float32: thousands of groups may add up
        zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in wanted.items()}
        start = ((zero(), zero()), zeros)
        (sums, gradients), by_hidden = jax.lax.scan(add, start, (hidden.value, targets.value))
        none = dict.fromkeys(fixed)
        dtypes = {path: jnp.zeros((), leaf.dtype) for path, leaf in wanted.items()}
        return sums, (gradients, dtypes, none, by_hidden)

    def backward(saved: Any, by_sums: Any) -> tuple[Any, Any, None]:
        gradients, dtypes, none, by_hidden = saved
        factor = by_sums[0]
        by_params = {path: (factor * gradients[path]).astype(dtypes[path].dtype) for path in gradients}
        return unflatten(by_params | none), (factor * by_hidden).astype(by_hidden.dtype), None

    summed.defvjp(forward, backward, symbolic_zeros=True)
    return summed
