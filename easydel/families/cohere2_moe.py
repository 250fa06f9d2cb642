"""Command A+ (Cohere 2026, the model card of CohereLabs/command-a-plus-05-2026): Command R7B with routed experts."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from easydel.families import cohere
from easydel.families._experts import FUSED_BY_PEFT, by_type
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, RMSNorm, TopK, family
from easydel.families.llama import NAMES as LLAMA, attention

NAMES = LLAMA.extended({"shared_expert": "shared_experts"})


@dataclass(frozen=True)
class HalfGLU(GLU):
    """Half of what a GLU gives: a mean is the sum of two halves."""

    def combine(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        return super().combine(gate, up) * 0.5


def experts(c: HFConfig) -> MoE:
    """Routed experts, and shared ones of the size of all of them; the two are summed, or averaged."""
    size, count, score = c.intermediate_size, c.num_shared_experts, c.only("expert_selection_fn", "softmax", "sigmoid")
    averaged = c.only("shared_expert_combination_strategy", "average", "sum") == "average" and count > 0
    renormalize = c.norm_topk_prob or score == "softmax"  # a softmax over the chosen ones alone
    router = TopK(c.num_experts_per_tok, renormalize, 0.5 if averaged else 1.0, score)
    shared = (HalfGLU if averaged else GLU)(size * count, c.hidden_act) if count else None
    return MoE(c.num_experts, GLU(size, c.hidden_act), router, shared)


def kinds(c: HFConfig, first: int) -> list[str]:
    """The kind of each layer; the `first`, dense ones have a period of their own."""
    periods = [c.prefix_dense_sliding_window_pattern] * first + [c.sliding_window_pattern] * c.num_hidden_layers
    counts = [*range(1, first + 1), *range(1, c.num_hidden_layers - first + 1)]
    return [SLIDING if count % period else FULL for count, period in zip(counts, periods, strict=False)]


@family("cohere2_moe", NAMES, peft_lacks=FUSED_BY_PEFT)
def cohere2_moe(c: HFConfig) -> Decoder:
    first, bias = c.get("first_k_dense_replace", 0), c.attention_bias
    choices = {"interleaved": True, "biased": bias}
    sliding = attention(c, window=c.sliding_window, **choices)
    rotated, plain = attention(c, **choices), attention(c, position=None, **choices)
    dense = GLU(c.get("prefix_dense_intermediate_size") or c.intermediate_size, c.hidden_act)
    ffns, turned = by_type(c, experts(c), dense, first), c.prefix_dense_sliding_window_pattern == 1
    mixers = [
        sliding if kind == SLIDING else rotated if turned and ffn is dense else plain
        for kind, ffn in zip(layer_types(c, kinds(c, first)), ffns, strict=True)
    ]
    norm = None if c.rms_norm_eps is None else RMSNorm(c.rms_norm_eps)
    return cohere.parallel(c, mixers, ffns, norm)
