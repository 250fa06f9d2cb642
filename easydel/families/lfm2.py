"""LFM2 (Liquid AI 2025, arXiv:2511.23404): gated short convolutions, and a few layers of attention between them."""

from collections.abc import Sequence

from easydel.families import llama as base
from easydel.families._layers import FULL, layer_types
from easydel.families._parts import (
    GLU,
    Block,
    Decoder,
    Fused,
    HFConfig,
    Part,
    QKNorm,
    RMSNorm,
    ShortConv,
    family,
)

CONV = "conv"
RENAMES = {
    r"model\.norm": "model.embedding_norm",
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp": "feed_forward",
    "gate_proj": "w1",
    "up_proj": "w3",
    "down_proj": "w2",
}
ATTENTION = {r"self_attn\.o_proj": "self_attn.out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
PROJECTIONS = Fused("conv.in_proj", ("conv.in_proj_b", "conv.in_proj_c", "conv.in_proj_x"))
NAMES = base.NAMES.extended(RENAMES | ATTENTION, fused=(PROJECTIONS,))
ALIASES = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}


def hybrid(c: HFConfig, kinds: Sequence[str] | None, ffns: Sequence[Part]) -> Decoder:
    """Blocks of those kinds around `ffns`, one for each layer."""
    norm = RMSNorm(c.norm_eps)
    mixers = {
        CONV: ShortConv(c.hidden_size, c.conv_L_cache, c.conv_bias),
        FULL: base.attention(c, norms=QKNorm(norm)),
    }
    found = layer_types(c, kinds, tuple(mixers))
    blocks = [Block(mixers[kind], ffn, attn_in=norm, ffn_in=norm) for kind, ffn in zip(found, ffns, strict=True)]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)


def hidden(c: HFConfig) -> int:
    """Features of the feed-forward: two thirds of what the config says, rounded up, unless it says otherwise."""
    size, factor, multiple = c.intermediate_size, c.block_ffn_dim_multiplier, c.block_multiple_of
    if not c.block_auto_adjust_ff_dim:
        return size
    size = int(2 * size / 3)
    return size if factor is None else -(-int(factor * size) // multiple) * multiple


@family("lfm2", NAMES, aliases=ALIASES)
def lfm2(c: HFConfig) -> Decoder:
    layers = range(c.num_hidden_layers)
    attending = c.get("full_attn_idxs", layers)
    return hybrid(c, [FULL if i in attending else CONV for i in layers], [GLU(hidden(c), "silu")] * len(layers))
