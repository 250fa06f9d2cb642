"""Qwen3-Next (Qwen Team 2025, the model card of Qwen/Qwen3-Next-80B-A3B-Instruct): three layers of gated delta rule to
each one of gated attention, and many experts with a gated shared one."""

from collections.abc import Sequence

from easydel.families import llama as base
from easydel.families._experts import FUSED_BY_PEFT, in_steps
from easydel.families._layers import FULL, LINEAR, layer_types
from easydel.families._parts import (
    GLU,
    Block,
    Decoder,
    DeltaNet,
    Fused,
    Gate,
    HFConfig,
    Names,
    Part,
    QKNorm,
    RMSNorm,
    concatenated,
    family,
    grouped,
)

CONVOLUTIONS = Fused(
    "linear_attn.conv1d", tuple(f"linear_attn.{part}_conv1d" for part in "qkv"), concatenated, kernel_dim=-3
)
AHEAD = r"mtp\..*"  # layers that predict tokens further ahead
GATED_QUERIES = ("self_attn.q_proj", "self_attn.gate_proj")
# Norms that multiply by one plus their weight, and by the weight alone in mlx-lm.
RAISED = (r".*(input_layernorm|post_attention_layernorm|model\.norm|q_norm|k_norm)\.weight",)


def fused(name: str, parts: str, groups: int) -> Fused:
    """A projection to several `parts`, one group after the other."""
    return Fused(f"linear_attn.{name}", tuple(f"linear_attn.in_proj_{part}" for part in parts), grouped(groups))


def gated_queries(c: HFConfig) -> Fused:
    """Each head's queries, then its gate."""
    return Fused("self_attn.q_proj", GATED_QUERIES, grouped(c.num_attention_heads))


def names(c: HFConfig) -> Names:
    groups = c.linear_num_key_heads
    projections = (fused("in_proj_qkvz", "qkvz", groups), fused("in_proj_ba", "ba", groups))
    every = (*projections, CONVOLUTIONS, gated_queries(c))
    return base.NAMES.extended(fused=every, ignored=(AHEAD,), mlx_raised=RAISED)


def mixers(c: HFConfig) -> list[Part]:
    """The mixer of each layer: by default every `full_attention_interval`-th one is attention."""
    norm = RMSNorm(c.rms_norm_eps, offset=1.0)
    biased = "qkvo" if c.attention_bias else ""
    linear = DeltaNet(
        c.linear_num_value_heads,
        c.linear_num_key_heads,
        c.linear_key_head_dim,
        c.linear_value_head_dim,
        c.linear_conv_kernel_dim,
        c.hidden_act,
        RMSNorm(c.rms_norm_eps),
    )
    attending = base.attention(c, norms=QKNorm(norm), gate=Gate(bias=c.attention_bias), biased=biased)
    kinds: dict[str, Part] = {LINEAR: linear, FULL: attending}
    period = c.get("full_attention_interval", 4)
    default = [LINEAR if (i + 1) % period else FULL for i in range(c.num_hidden_layers)]
    return [kinds[kind] for kind in layer_types(c, default, tuple(kinds))]


def hybrid(c: HFConfig, ffns: Sequence[Part]) -> Decoder:
    """Norms store scale - 1, but for those in the linear layers."""
    norm = RMSNorm(c.rms_norm_eps, offset=1.0)
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer, ffn in zip(mixers(c), ffns, strict=True)]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)


@family("qwen3_next", names, peft_lacks=FUSED_BY_PEFT)
def qwen3_next(c: HFConfig) -> Decoder:
    return hybrid(c, in_steps(c, GLU(c.shared_expert_intermediate_size, c.hidden_act)))
