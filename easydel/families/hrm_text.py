"""HRM-Text (Sapient 2026, after Wang et al. 2025, arXiv:2506.21734): two stacks of layers that take turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.families import llama as base
from easydel.families._parts import (
    GATE_UP,
    GLU,
    Block,
    Decoder,
    Embed,
    FromRead,
    Fused,
    Gate,
    HFConfig,
    Part,
    RMSNorm,
    family,
)
from easydel.layers.context import Context
from easydel.layers.linear import buffer
from easydel.layers.norm import AnyNorm
from easydel.layers.part import HeadSizes, least
from easydel.layers.rope import Rope
from easydel.layers.stack import build_layers, run_layers
from easydel.ops.attend import Causal, Prefix
from easydel.policy import Policy

# B batch, T length, D model
STACKS = {"low": "L_module", "high": "H_module"}
GQKV = tuple(f"self_attn.{part}_proj" for part in ("gate", "q", "k", "v"))
NAMES = base.NAMES.extended(
    {rf"model\.layers\.\*\.cycles\.{ours}\.\*": f"model.{theirs}.layers.{{1}}" for ours, theirs in STACKS.items()}
    | {r"model\.layers\.\*\.cycles\.start": "model.z_L_init", "self_attn": "attn"},
    fused=(Fused("self_attn.gqkv_proj", GQKV), Fused("mlp.gate_up_proj", GATE_UP)),
)


@dataclass(frozen=True)
class Cycles(Part):
    """`rounds` of some turns of a low stack of layers, and one of a high stack, each of `layers` times `block`.

    Each turn reads the sum of what both stacks made last; the high one's is at first the input, and the low one's is
    learned. In round i, gradients flow through the last `learning[i]` of the `turns` of the low stack.
    """

    name: ClassVar[str] = "cycles"
    block: Block
    layers: int
    norm: AnyNorm
    rounds: int
    turns: int
    learning: tuple[int, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (self.block,) * self.layers

    def build(self, features: int, policy: Policy) -> CyclesLayer:
        return CyclesLayer(self, features, policy)

    def cache(self, batch: int, length: int, dtype: Any) -> Any:
        """Returns a cache for each layer of each turn, in order."""
        stack = [self.block.cache(batch, length, dtype) for _ in self.blocks]
        return [stack] * (self.rounds * (self.turns + 1))

    def ropes(self) -> Iterable[Rope]:
        return self.block.ropes()

    def head_sizes(self) -> Iterable[HeadSizes]:
        return self.block.head_sizes()

    def reads(self) -> Iterable[str]:
        return self.block.reads()

    def rewinds(self, length: int, end: int) -> int | None:
        return least((self.block.rewinds(length, end),))


class CyclesLayer(nnx.Module):
    def __init__(self, record: Cycles, features: int, policy: Policy):
        policy = replace(policy, scan_layers=False)
        self.low = build_layers(record.blocks, features, policy)
        self.high = build_layers(record.blocks, features, policy)
        self.start = buffer((features,), jnp.float32)
        self.norm = record.norm.build(features, policy)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, new = self.record, []

        def turn(layers: Any, x_BTD: jax.Array) -> jax.Array:
            own = None if cache is None else cache[len(new)]
            flow, kept = run_layers(layers, record.blocks, self.policy, {"x": x_BTD}, context, own)
            new.append(kept)
            return self.norm(flow["x"])

        low_BTD, high_BTD = jnp.broadcast_to(self.start[...].astype(x_BTD.dtype), x_BTD.shape), x_BTD
        for learning in record.learning:
            for index in range(record.turns):
                low_BTD = turn(self.low, low_BTD + high_BTD)
                if index < record.turns - learning:
                    low_BTD = jax.lax.stop_gradient(low_BTD)
            high_BTD = turn(self.high, high_BTD + low_BTD)
        return high_BTD, None if cache is None else new


@family("hrm_text", NAMES)
def hrm_text(c: HFConfig) -> Decoder:
    for key in ("attention_bias", "mlp_bias"):
        c.only(key, False)  # files fuse kernels, and transformers 5.23 would leave their biases apart
    norm, rounds, turns = RMSNorm(c.rms_norm_eps, scaled=False), c.H_cycles, c.L_cycles
    sight = Prefix() if c.prefix_lm else Causal()
    heads = {"kv": c.num_attention_heads, "gate": Gate(), "sight": sight}
    ffn = GLU(c.intermediate_size, c.hidden_act)
    block = Block(base.attention(c, **heads), ffn, attn_in=norm, ffn_in=norm)
    layers = c.num_hidden_layers  # of all turns, in files that state those of a stack
    learning = c.get("L_bp_cycles", [2])
    learning = ([1] * (rounds - len(learning)) + learning)[:rounds]
    cycles = Cycles(block, c.get("num_layers_per_stack") or layers, norm, rounds, turns, tuple(learning))
    scale = c.get("embedding_scale") or 1 / c.get("initializer_range", 0.02)
    whole = Block(cycles, None, residual=FromRead(keep=0.0))
    return Decoder.from_hf(c, blocks=[whole], final_norm=None, embed=Embed(scale=scale))
