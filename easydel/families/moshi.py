"""Moshi's text decoder (Defossez et al. 2024, arXiv:2410.00037): Llama that sees a window of the past.

Its files may hold a model of sound too, which is left out.
"""

from easydel.families import llama as base
from easydel.families._parts import GATE_UP, GLU, Block, Decoder, Embed, Fused, HFConfig, RMSNorm, family

SOUND = (r"(audio_encoder|depth_decoder)\..*", r"embed_tokens\.\d+\.weight")
NAMES = base.NAMES.extended(
    {r"self_attn\.([qkvo]_proj)": r"self_attn.\1.linear", "down_proj": "fc2"},
    fused=(Fused("mlp.fc1", GATE_UP),),
    ignored=SOUND,
)


@family("moshi", NAMES)
def moshi(c: HFConfig) -> Decoder:
    norm = RMSNorm(c.rms_norm_eps)
    mixer = base.attention(c, window=c.sliding_window)
    block = Block(mixer, GLU(c.ffn_dim // 2, c.hidden_act), attn_in=norm, ffn_in=norm)
    embed = Embed(extra=1)  # a vector for what comes before the first token
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, embed=embed)
