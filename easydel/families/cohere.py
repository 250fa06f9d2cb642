"""Command R (Cohere 2024, the model card of CohereLabs/c4ai-command-r-v01): parallel blocks, scaled logits."""

from collections.abc import Sequence

from easydel.families._parts import GLU, Block, Decoder, Head, HFConfig, LayerNorm, Parallel, Part, QKNorm, family
from easydel.families.llama import NAMES, attention


def parallel(c: HFConfig, mixers: Sequence[Part]) -> Decoder:
    """Returns Command's decoder around `mixers`: one norm before both halves of each block."""
    norm, ffn = LayerNorm(c.layer_norm_eps, biased=False), GLU(c.intermediate_size, c.hidden_act)
    blocks = [Block(mixer, ffn, attn_in=norm, residual=Parallel()) for mixer in mixers]
    head = Head(c.tie_word_embeddings, scale=c.logit_scale)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, head=head)


@family("cohere", NAMES)
def cohere(c: HFConfig) -> Decoder:
    norm = QKNorm(LayerNorm(c.layer_norm_eps, biased=False), per_head=True) if c.use_qk_norm else None
    bias = c.attention_bias
    mixer = attention(c, interleaved=True, bias=bias, out_bias=bias, qk_norm=norm)
    return parallel(c, [mixer] * c.num_hidden_layers)
