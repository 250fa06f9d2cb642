"""StableLM 2 (Bellagente et al. 2024, arXiv:2402.17834): LayerNorms, partial rope, and for 12B a norm per head."""

from dataclasses import replace

from easydel.families._parts import GLU, Block, Decoder, HFConfig, LayerNorm, Parallel, QKNorm, family
from easydel.families.llama import NAMES as LLAMA, attention

NORMS = {"q_norm": "q_layernorm.norms", "k_norm": "k_layernorm.norms"}
NAMES = LLAMA.extended(NORMS, listed=tuple(NORMS.values()))


@family("stablelm", NAMES)
def stablelm(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_eps)
    qk_norm = QKNorm(LayerNorm(c.layer_norm_eps, biased=False), per_head=True) if c.qk_layernorm else None
    mixer, ffn = (
        attention(c, biased="qkv" if c.use_qkv_bias else "", norms=qk_norm),
        GLU(c.intermediate_size, c.hidden_act),
    )
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    if c.use_parallel_residual:
        block = replace(block, ffn_in=None, residual=Parallel())
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
