"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745): partly rotary, attention beside the feed-forward."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import bloom, family, llama
from easydel.layers.block import Block
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.residual import Parallel, Sequential
from easydel.weights.names import Names, grouped

BODY = {"self_attn": "attention", r"model\.norm": "gpt_neox.final_layer_norm"}
RENAMES = {"embed_tokens": "embed_in", "lm_head": "embed_out"} | bloom.LINEAR | BODY
ALIASES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
SIZES = {"vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44}
DEFAULTS = SIZES | {
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}


def names(c: HFConfig) -> Names:
    buffers, head = r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)", {"embed_out.weight": ("lm_head.weight",)}
    fused = bloom.fused(grouped(c.num_attention_heads))
    return Names(RENAMES, fused, ignored=(buffers,), substitutes=head, prefix="gpt_neox")


@family("gpt_neox", names, defaults=DEFAULTS, aliases=ALIASES)
def gpt_neox(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.layer_norm_eps), MLP(c.intermediate_size, c.hidden_act)
    mixer = llama.attention(c, bias=c.attention_bias, out_bias=c.attention_bias)
    residual = Parallel() if c.use_parallel_residual else Sequential()
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm, residual=residual)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
