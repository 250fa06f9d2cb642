"""LFM3 (Liquid AI 2026, the model card of LiquidAI/LFM3-1.7B): LFM2 with windows, gated heads and sandwich norms."""

from easydel.families import llama as base
from easydel.families._layers import FULL, SLIDING, layer_types, windows
from easydel.families._parts import GLU, Block, Decoder, Gate, HFConfig, QKNorm, RMSNorm, ShortConv, family
from easydel.families.lfm2 import CONV, PROJECTIONS, RENAMES

OWN = {
    "attn_output_layernorm": "post_operator_norm",
    "mlp_output_layernorm": "post_ffn_norm",
    r"self_attn\.gate_proj": "self_attn.gate_proj",  # not the feed-forward's
}
NAMES = base.NAMES.extended(RENAMES | OWN, fused=(PROJECTIONS,))


def kind(layer: int) -> str:
    """What a layer is by default."""
    return FULL if layer % 4 == 2 else SLIDING if layer and layer % 4 == 0 else CONV


@family("lfm3", NAMES)
def lfm3(c: HFConfig) -> Decoder:
    norm, gate = RMSNorm(c.norm_eps), Gate(per_head=True) if c.use_attention_gate else None
    after, choices = norm if c.use_sandwich_norm else None, {"norms": QKNorm(norm), "gate": gate}
    kinds = layer_types(c, [kind(layer) for layer in range(c.num_hidden_layers)], (FULL, SLIDING, CONV))
    ffn, blocks = GLU(c.intermediate_size, "silu"), []
    for found, window in zip(kinds, windows(c, kinds), strict=True):
        mixer = ShortConv(c.hidden_size, c.conv_L_cache, c.conv_bias)
        if found != CONV:
            mixer = base.attention(c, rope=c.rope(found), window=window, biased=c.attention_bias, **choices)
        blocks.append(Block(mixer, ffn, norm, after, norm, after))
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)
