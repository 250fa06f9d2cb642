"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745): partly rotary, attention beside the feed-forward."""

from easydel.families import bloom, llama
from easydel.families._parts import (
    MLP,
    Block,
    Decoder,
    HFConfig,
    LayerNorm,
    Names,
    Parallel,
    Sequential,
    family,
    grouped,
)

BODY = {"self_attn": "attention", r"model\.norm": "gpt_neox.final_layer_norm"}
RENAMES = {"embed_tokens": "embed_in", "lm_head": "embed_out"} | bloom.LINEAR | BODY


def names(c: HFConfig) -> Names:
    buffers, head = r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)", {"embed_out.weight": ("lm_head.weight",)}
    fused = bloom.fused(grouped(c.num_attention_heads))
    return Names(RENAMES, fused, ignored=(buffers,), substitutes=head, prefix="gpt_neox")


@family(
    "gpt_neox",
    names,
    aliases={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    inert={"is_decoder": "it is one in any case"},
)
def gpt_neox(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.layer_norm_eps), MLP(c.intermediate_size, c.hidden_act)
    mixer = llama.attention(c, biased=c.attention_bias)
    residual = Parallel() if c.use_parallel_residual else Sequential()
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm, residual=residual)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
