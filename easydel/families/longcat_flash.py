"""LongCat-Flash (Meituan 2025, arXiv:2509.01322): layers of two attentions, and experts on a shortcut past the second.

Some of the experts that can be chosen do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._parts import GLU, Block, Decoder, HFConfig, MoE, Names, Part, RMSNorm, TopK, family
from easydel.layers.block import Flow
from easydel.layers.context import Context
from easydel.layers.part import Handed
from easydel.policy import Policy

SHORTCUT = "shortcut"
TWO = ("self_attn", "input_layernorm", "post_attention_layernorm")
NAMES = base.NAMES.extended(
    {f"{half}.{name}": f"{name}.{i}" for i, half in enumerate(("first", "second")) for name in TWO}
    | {"first.mlp.dense": "mlps.0", "second.mlp.dense": "mlps.1", "first.mlp.moe": "mlp"}
    | {"first.mlp.moe.gate": "mlp.router.classifier"}
    | {"first.mlp.moe.gate.correction_bias": "mlp.router.e_score_correction_bias"},
    exact=(r"moe\.gate",),
)


@dataclass(frozen=True)
class Leaving(Part):
    """A dense feed-forward that hands on what experts make of its input."""

    dense: GLU
    moe: MoE

    def build(self, features: int, policy: Policy) -> LeavingLayer:
        return LeavingLayer(self, features, policy)

    def hands_on(self) -> Iterable[str]:
        yield SHORTCUT


class LeavingLayer(nnx.Module):
    def __init__(self, record: Leaving, features: int, policy: Policy):
        self.dense, self.moe = record.dense.build(features, policy), record.moe.build(features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[Handed, Any]:
        y_BTD, _ = self.dense(x_BTD, context, None)
        experts_BTD, _ = self.moe(x_BTD, context, None)
        return Handed(y_BTD, {SHORTCUT: experts_BTD}), cache


@dataclass(frozen=True)
class Joining(Part):
    """A dense feed-forward that adds what was handed on past it."""

    dense: GLU

    def build(self, features: int, policy: Policy) -> JoiningLayer:
        return JoiningLayer(self, features, policy)


class JoiningLayer(nnx.Module):
    def __init__(self, record: Joining, features: int, policy: Policy):
        self.dense = record.dense.build(features, policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        return self.dense(x_BTD, context, None)[0] + context.handed[SHORTCUT], cache


@dataclass(frozen=True, kw_only=True)
class Pair(Block):
    """Two blocks as one layer; what the first hands on is for the second alone."""

    mixer: Part | None = None
    ffn: Part | None = None
    first: Block
    second: Block

    def build(self, features: int, policy: Policy) -> Any:
        return PairLayer(self, features, policy)

    def parts(self) -> Iterator[tuple[str, Part]]:
        for half, block in (("first", self.first), ("second", self.second)):
            yield from ((f"{half}/{slot}", part) for slot, part in block.parts())

    def hands_on(self) -> Iterable[str]:
        return ()


class PairLayer(nnx.Module):
    def __init__(self, record: Pair, features: int, policy: Policy):
        self.first, self.second = record.first.build(features, policy), record.second.build(features, policy)
        self.record = record

    def __call__(self, flow: Flow, context: Context, cache: Any) -> tuple[Flow, Any]:
        before, kept = flow.keys(), {}
        for half, layer in (("first", self.first), ("second", self.second)):
            slots = [slot for slot, _ in layer.record.parts()]
            own = None if cache is None else {slot: cache[f"{half}/{slot}"] for slot in slots}
            flow, own = layer(flow, context, own)
            kept |= {} if own is None else {f"{half}/{slot}": own[slot] for slot in slots}
        return {name: flow[name] for name in before}, None if cache is None else kept


def names(c: HFConfig) -> Names:
    """transformers gives experts that do nothing projections without use."""
    first, zero = c.n_routed_experts, c.zero_expert_num or 0
    unused = "|".join(str(expert) for expert in range(first, first + zero))
    ignored = (rf"model\.layers\.\d+\.mlp\.experts\.({unused})\.(gate|up)_proj\.weight",) if zero else ()
    return NAMES.extended(ignored=(*ignored, r"model\.mtp\..*"))


@family("longcat_flash", names, peft_lacks=FUSED_BY_PEFT)
def longcat_flash(c: HFConfig) -> Decoder:
    c.only("router_bias", False)
    c.only("qk_rope_head_dim", c.head_dim)
    mixer = v2.latent_attention(c)
    assert mixer.scale is not None
    scale = mixer.scale * (c.hidden_size / c.q_lora_rank) ** 0.5
    mixer = replace(mixer, scale=scale, latent_scale=(c.hidden_size / c.kv_lora_rank) ** 0.5)
    norm, dense = RMSNorm(c.rms_norm_eps), GLU(c.ffn_hidden_size, c.hidden_act)
    router = TopK(c.moe_topk, scale=c.routed_scaling_factor, corrected=True)
    expert = GLU(c.expert_ffn_hidden_size, c.hidden_act)
    moe = MoE(c.n_routed_experts, expert, router, zero=c.zero_expert_num or 0)
    first, second = (Block(mixer, ffn, attn_in=norm, ffn_in=norm) for ffn in (Leaving(dense, moe), Joining(dense)))
    return Decoder.from_hf(c, blocks=[Pair(first=first, second=second)] * c.num_layers, final_norm=norm)
