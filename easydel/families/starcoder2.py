"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173): Mistral's attention, LayerNorms and a plain MLP, all biased."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families.llama import NAMES as LLAMA
from easydel.families.llama import attention
from easydel.layers.block import Block
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm

NAMES = LLAMA.extended({"up_proj": "c_fc", "down_proj": "c_proj"})
SIZES = {"vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30}
DEFAULTS = SIZES | {
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "sliding_window": None,
    "use_bias": True,
    "tie_word_embeddings": True,
}


@family("starcoder2", NAMES, defaults=DEFAULTS, inert=("activation_function", "mlp_type", "norm_type"))
def starcoder2(c: HFConfig) -> Decoder:
    norm, bias = LayerNorm(c.norm_epsilon), c.use_bias
    mixer = attention(c, bias=bias, out_bias=bias, window=c.sliding_window)
    block = Block(mixer, MLP(c.intermediate_size, c.hidden_act, bias), attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
