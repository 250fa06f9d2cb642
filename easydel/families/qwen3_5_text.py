"""Qwen3.5 (Qwen Team 2026, the model card of Qwen/Qwen3.5-27B): Qwen3-Next with dense feed-forwards."""

from easydel.families import llama as base, qwen3_next as next_
from easydel.families._parts import GLU, Decoder, Fused, HFConfig, Names, family

QKV = Fused("linear_attn.in_proj_qkv", tuple(f"linear_attn.in_proj_{part}" for part in "qkv"))


def names(c: HFConfig) -> Names:
    fused = (QKV, next_.CONVOLUTIONS, next_.gated_queries(c))
    return base.NAMES.extended(fused=fused, ignored=(next_.AHEAD,), mlx_raised=next_.RAISED)


@family("qwen3_5_text", names)
def qwen3_5_text(c: HFConfig) -> Decoder:
    return next_.hybrid(c, [GLU(c.intermediate_size, c.hidden_act)] * c.num_hidden_layers)
