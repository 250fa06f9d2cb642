"""HyperCLOVA X SEED (NAVER Cloud 2025, arXiv:2404.01954; the card of its Think-14B): Granite with norms after parts."""

from dataclasses import replace

from easydel.families import granite
from easydel.families._parts import GLU, Decoder, Head, HFConfig, RMSNorm, family
from easydel.families.llama import NAMES as LLAMA

NAMES = LLAMA.extended({"attn_output_layernorm": "post_norm1", "mlp_output_layernorm": "post_norm2"})


@family("hyperclovax", NAMES)
def hyperclovax(c: HFConfig) -> Decoder:
    """Returns the decoder. Logits are multiplied by the scale, where Granite's are divided."""
    head_dim = c.get("head_dim") or c.hidden_size // c.num_attention_heads
    mixers = [granite.attention(c, scale=c.get("attention_multiplier", head_dim**-0.5))] * c.num_hidden_layers
    plain = granite.multiplied(c, GLU(c.intermediate_size, c.hidden_act, c.mlp_bias), mixers)
    norm = RMSNorm(c.rms_norm_eps) if c.use_post_norm else None
    blocks = tuple(replace(block, attn_out=norm, ffn_out=norm) for block in plain.blocks)
    return replace(plain, blocks=blocks, head=Head(c.tie_word_embeddings, scale=c.logits_scaling))
