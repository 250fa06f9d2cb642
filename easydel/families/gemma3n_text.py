"""Gemma 3n (Gemma Team 2025, ai.google.dev/gemma/docs/gemma-3n): inputs for layers, shared keys, several streams.

Layers update one of several streams and predict the others (AltUp: Baykal et al. 2023, arXiv:2301.13310), a low-rank
projection goes beside attention (LAuReL: Menghani et al. 2024, arXiv:2411.07501), and the first feed-forwards keep
their largest activations alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families import gemma2, gemma4_text as gemma4
from easydel.families._layers import alternating, ropes, shared_keys, windows
from easydel.families._parts import (
    GLU,
    Block,
    Decoder,
    Embed,
    Head,
    HFConfig,
    LayerInput,
    Names,
    QKNorm,
    RMSNorm,
    TokenInputs,
    family,
)
from easydel.families.llama import attention
from easydel.layers.block import BlockLayer, Flow
from easydel.layers.context import Context
from easydel.layers.linear import Linear, parameter
from easydel.layers.mlp import saved
from easydel.policy import Policy

# B batch, T tokens of this call, H streams, D model
NAMES = gemma2.NAMES.extended(
    gemma4.PER_LAYER
    | {"stream.projections": "altup_projections", "stream.unembed_projections": "altup_unembed_projections"}
    | {"altup.output_gain": "altup.correct_output_scale"}
)


@dataclass(frozen=True)
class AltUp:
    """`count` streams, of which layers compute the `active` one. The first is what embeddings gave.

    The others begin as projections of it, of the same size. In the end, projections of all are averaged.
    """

    count: int
    active: int = 0

    def build(self, features: int, policy: Policy) -> AltUpStream:
        return AltUpStream(self, features, policy)


class AltUpStream(nnx.Module):
    def __init__(self, record: AltUp, features: int, policy: Policy):
        others = range(record.count - 1)
        self.projections = nnx.List([Linear(features, features, policy) for _ in others])
        self.unembed_projections = nnx.List([Linear(features, features, policy) for _ in others])

    def open(self, x_BTD: jax.Array, embedded: Any) -> Flow:
        others = [sized(projection(x_BTD), x_BTD) for projection in self.projections]
        return {"x": jnp.stack([x_BTD, *others], axis=2)}

    def close(self, flow: Flow) -> jax.Array:
        first_BTD, *others = (flow["x"][:, :, stream] for stream in range(flow["x"].shape[2]))
        pairs = zip(self.unembed_projections, others, strict=True)
        same = [sized(projection(other), first_BTD) for projection, other in pairs]
        return jnp.mean(jnp.stack([first_BTD, *same]), axis=0)


def sized(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns `x` with the root mean square of `like`, token by token; that of `x` counts as 1e-5 ** 0.5 at least."""
    own, wanted = (jnp.mean(jnp.square(part.astype(jnp.float32)), axis=-1, keepdims=True) for part in (x, like))
    return (x.astype(jnp.float32) * jnp.sqrt(wanted / jnp.maximum(own, 1e-5))).astype(x.dtype)


class AltUpRouter(nnx.Module):
    """How much of each stream goes into each, by a token of the active stream."""

    def __init__(self, record: AltUpBlock, features: int, policy: Policy):
        count = record.streams.count
        self.router_norm = record.norm.build(features, policy)
        self.modality_router = Linear(features, count, policy)
        self.prediction_coefs = Linear(count, count * count, policy)
        self.correction_coefs = Linear(count, count, policy)
        self.output_gain = parameter((features,), policy)
        self.active, self.precision = record.streams.active, policy.precision

    def predicted(self, x_BTHD: jax.Array) -> jax.Array:
        """Every stream plus a mixture of all of them."""
        streams = x_BTHD.shape[2]
        coefs_BTHJ = self.prediction_coefs(self._routed(x_BTHD[:, :, self.active]))
        coefs_BTHJ = coefs_BTHJ.reshape(*x_BTHD.shape[:2], streams, streams)
        return x_BTHD + jnp.einsum("BTJD,BTHJ->BTHD", x_BTHD, coefs_BTHJ, precision=self.precision)

    def corrected(self, predicted_BTHD: jax.Array, computed_BTD: jax.Array) -> jax.Array:
        """Every stream plus its share of what the active one's prediction lacks of what was computed."""
        coefs_BTH = self.correction_coefs(self._routed(computed_BTD)) + 1
        return predicted_BTHD + (computed_BTD - predicted_BTHD[:, :, self.active])[:, :, None] * coefs_BTH[..., None]

    def _routed(self, x_BTD: jax.Array) -> jax.Array:
        read = self.router_norm(x_BTD) * jnp.asarray(x_BTD.shape[-1] ** -1.0, x_BTD.dtype)
        return jnp.tanh(self.modality_router(read).astype(jnp.float32)).astype(x_BTD.dtype)


class Laurel(nnx.Module):
    """x + norm(right(left(x))) through `rank` channels."""

    def __init__(self, rank: int, norm: RMSNorm, features: int, policy: Policy):
        self.linear_left, self.linear_right = Linear(features, rank, policy), Linear(rank, features, policy)
        self.post_laurel_norm = norm.build(features, policy)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD + self.post_laurel_norm(self.linear_right(self.linear_left(x_BTD)))


@dataclass(frozen=True, kw_only=True)
class AltUpBlock(Block):
    """Computes the active one of `streams`, corrects all by it, and adds the layer's input to all but the first."""

    streams: AltUp
    norm: RMSNorm
    laurel_rank: int
    each: LayerInput

    def build(self, features: int, policy: Policy) -> AltUpLayer:
        return AltUpLayer(self, features, policy)


class AltUpLayer(BlockLayer):
    def __init__(self, record: AltUpBlock, features: int, policy: Policy):
        super().__init__(record, features, policy)
        self.altup = AltUpRouter(record, features, policy)
        self.laurel = Laurel(record.laurel_rank, record.norm, features, policy)
        self.per_layer_input = record.each.build(features, policy)

    def __call__(self, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        altup = self.altup
        predicted_BTHD = altup.predicted(flow["x"])
        flow, cache = super().__call__({**flow, "x": predicted_BTHD[:, :, altup.active]}, context, cache)
        corrected_BTHD = altup.corrected(predicted_BTHD, flow["x"])
        first_BTD = corrected_BTHD[:, :, altup.active]
        scaled_BTD = first_BTD * altup.output_gain[...].astype(first_BTD.dtype)
        added_BTD, _ = self.per_layer_input(scaled_BTD, context, None)
        x_BTHD = corrected_BTHD.at[:, :, 1:].add(added_BTD[:, :, None])
        return {**flow, "x": self.policy.shard_hidden(x_BTHD)}, cache

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        read_BTD = self.input_layernorm(x_BTD)
        mixed_BTD = x_BTD + self.attn_output_layernorm(run("mixer", read_BTD))
        x_BTD = (mixed_BTD + self.laurel(read_BTD)) * jnp.asarray(2**-0.5, x_BTD.dtype)
        return x_BTD + self.mlp_output_layernorm(run("ffn", self.post_attention_layernorm(x_BTD)))


@dataclass(frozen=True)
class SparseGLU(GLU):
    """A GLU whose gates count by what they are above a threshold: as if normal, a share of `sparsity` is below it."""

    sparsity: float = 0.0

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        wide = gate.astype(jnp.float32)  # sums of squares lose their last bits in 16 bits
        deviation = jnp.std(wide, axis=-1, keepdims=True) * NormalDist().inv_cdf(self.sparsity)
        above = jax.nn.relu(wide - (jnp.mean(wide, axis=-1, keepdims=True) + deviation)).astype(gate.dtype)
        return super().combine(above, saved(up))


def ffns(c: HFConfig) -> list[GLU]:
    """Each layer's feed-forward, of its own size and sparsity; by default the first ten of many layers are sparse."""
    layers, act = c.num_hidden_layers, c.hidden_activation
    shares = [0.95 if layers > 10 and layer < 10 else 0.0 for layer in range(layers)]
    if c.get("activation_sparsity_pattern") is not None:
        shares = c.by_layer("activation_sparsity_pattern", layers)
    both = zip(c.by_layer("intermediate_size", layers), shares, strict=True)
    return [SparseGLU(size, act, sparsity=share) if share else GLU(size, act) for size, share in both]


def names(c: HFConfig) -> Names:
    return NAMES.extended(ignored=gemma4.unused_keys(c))


@family("gemma3n_text", names, inert={"altup_coef_clip": "limits weights while they are trained"})
def gemma3n_text(c: HFConfig) -> Decoder:
    c.only("altup_correct_scale", True)
    kinds, rope, norm = alternating(c, 5), ropes(c, local="rope_local_base_freq"), RMSNorm(c.rms_norm_eps)
    qk_norm = QKNorm(norm, values=replace(norm, scaled=False))
    choices = {"biased": c.attention_bias, "scale": 1.0, "norms": qk_norm}
    streams, width = AltUp(c.altup_num_inputs, c.altup_active_idx), c.hidden_size_per_layer_input
    own = {"streams": streams, "norm": norm, "laurel_rank": c.laurel_rank}
    own |= {"each": LayerInput(width, c.hidden_activation, norm)}
    parts = zip(kinds, windows(c, kinds), shared_keys(c, kinds), ffns(c), strict=True)
    blocks: list[Block] = []
    for kind, window, keys, ffn in parts:
        mixer = attention(c, window=window, rope=rope[kind], keys=keys, **choices)
        blocks.append(AltUpBlock(mixer, ffn, norm, norm, norm, norm, **own))
    head = Head(c.tie_word_embeddings, softcap=c.final_logit_softcapping)
    record = Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head, embed=Embed(scale=c.hidden_size**0.5))
    return replace(record, stream=streams, per_layer=TokenInputs(c.vocab_size_per_layer_input, width, norm))
