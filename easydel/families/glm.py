"""GLM-4 and GLM-Edge (GLM Team 2024, arXiv:2406.12793): Llama with biases on q, k and v, half of each head rotated."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.attention import Attention
from easydel.weights.names import GATE_UP, Fused

NAMES = base.NAMES.extended(fused=(Fused("mlp.gate_up_proj", GATE_UP),))
SIZES = {"vocab_size": 151552, "intermediate_size": 13696, "num_hidden_layers": 40, "max_position_embeddings": 131072}
HEADS = {"num_key_value_heads": 2, "head_dim": 128, "partial_rotary_factor": 0.5, "attention_bias": True}
DEFAULTS = base.DEFAULTS | SIZES | HEADS | {"rms_norm_eps": 1.5625e-7}


def attention(c: HFConfig) -> Attention:
    return base.attention(c, interleaved=True, bias=c.attention_bias)


@family("glm", NAMES, defaults=DEFAULTS)
def glm(c: HFConfig) -> Decoder:
    return base.pre_norm(c, [attention(c)] * c.num_hidden_layers)
