"""Phi-3.5-MoE (Abdin et al. 2024, arXiv:2404.14219): Mixtral with LayerNorms, biases and SparseMixer's choice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from easydel.families import llama as base, mixtral
from easydel.families._parts import (
    GLU,
    Attention,
    Block,
    Decoder,
    Head,
    HFConfig,
    LayerNorm,
    LongRope,
    MoE,
    Rope,
    TopK,
    UnsupportedModelError,
    family,
)


@dataclass(frozen=True)
class SparseMixer(TopK):
    """Two experts, each weighted among the experts whose score is less than a share of `slack` below its own.

    This is the choice at inference (Liu et al. 2024, arXiv:2409.12136, section 2); in training the paper draws at
    random.
    """

    slack: float = 0.02

    def choose(self, logits_BTE: jax.Array, correction_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        first, first_weight = self._best(logits_BTE, logits_BTE)
        others_BTE = jnp.where(jnp.arange(logits_BTE.shape[-1]) == first, -jnp.inf, logits_BTE)
        second, second_weight = self._best(logits_BTE, others_BTE)
        weights_BTK = jnp.concatenate([first_weight, second_weight], axis=-1)
        return weights_BTK, jnp.concatenate([first, second], axis=-1)

    def _best(self, logits_BTE: jax.Array, eligible_BTE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the index of the best eligible expert and its weight, [B, T, 1] each."""
        chosen, best = jnp.argmax(eligible_BTE, -1, keepdims=True), jnp.max(eligible_BTE, -1, keepdims=True)
        far_BTE = (best - logits_BTE) / jnp.maximum(jnp.abs(logits_BTE), best) > self.slack
        weights_BTE = jax.nn.softmax(jnp.where(far_BTE, -jnp.inf, eligible_BTE))
        return chosen, jnp.take_along_axis(weights_BTE, chosen, axis=-1)


@dataclass(frozen=True)
class TwoGains(Rope):
    """LongRoPE with another gain, `long_gain`, beyond the original length."""

    long_gain: float = 1.0

    def angles(self, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert isinstance(self.scaling, LongRope)
        cos, sin = super().angles(positions_BT)
        more = jnp.where(jnp.max(positions_BT) + 1 > self.scaling.length, self.long_gain / self.gain, 1.0)
        return cos * more, sin * more


def attention(c: HFConfig) -> Attention:
    """Returns attention with LongRoPE's gains from the config, and its long factors beyond the original length.

    So does the authors' code. transformers 5.23 uses the short factors there, though with the long ones' gain.
    """
    settings, choices = c.rope(), {"biased": c.attention_bias, "window": c.sliding_window}
    if (kind := settings["rope_type"]) not in ("default", "longrope"):
        raise UnsupportedModelError(f"the rope type is {kind!r}, known: 'default', 'longrope'", file=c.file)
    short, long = (settings.pop(key, None) for key in ("short_mscale", "long_mscale"))
    mixer = base.attention(c, rope=settings, **choices)
    rope = mixer.position
    if not isinstance(rope, Rope) or rope.scaling is None:
        return mixer
    return replace(mixer, position=TwoGains(rope.dim, rope.theta, rope.scaling, float(short), long_gain=float(long)))


@family("phimoe", mixtral.NAMES)
def phimoe(c: HFConfig) -> Decoder:
    c.only("num_experts_per_tok", 2)
    norm, router = LayerNorm(c.rms_norm_eps), SparseMixer(2, slack=2 * c.router_jitter_noise)
    ffn = MoE(c.num_local_experts, GLU(c.intermediate_size, c.hidden_act), router)
    block = Block(attention(c), ffn, attn_in=norm, ffn_in=norm)
    head = Head(c.tie_word_embeddings, bias=c.lm_head_bias)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, head=head)
