"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023, arXiv:2306.11644; Li et al. 2023, arXiv:2309.05463): parallel blocks."""

from easydel.families._parts import MLP, Block, Decoder, Head, HFConfig, LayerNorm, Parallel, QKNorm, family
from easydel.families.llama import NAMES as LLAMA, attention

RENAMES = {r"model\.norm": "model.final_layernorm", "o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2"}
NAMES = LLAMA.extended(RENAMES | {"q_norm": "q_layernorm", "k_norm": "k_layernorm"})


@family("phi", NAMES)
def phi(c: HFConfig) -> Decoder:
    norm = LayerNorm(c.layer_norm_eps)
    mixer = attention(c, biased=True, norms=QKNorm(norm) if c.qk_layernorm else None)
    block = Block(mixer, MLP(c.intermediate_size, c.hidden_act), attn_in=norm, residual=Parallel())
    head = Head(c.tie_word_embeddings, bias=True)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm, head=head)
