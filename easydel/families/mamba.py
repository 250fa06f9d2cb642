"""Mamba (Gu & Dao 2023, arXiv:2312.00752): recurrences in place of both attention and feed-forwards."""

from __future__ import annotations

import math

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.layers.block import Block
from easydel.layers.embed import Embed
from easydel.layers.mamba import Mamba
from easydel.layers.norm import RMSNorm
from easydel.weights.names import Names

EMBEDDINGS = {"model.embed_tokens": "backbone.embeddings", "model.norm": "backbone.norm_f"}
NAMES = Names(EMBEDDINGS | {"input_layernorm": "norm"}, prefix="backbone")
SIZES = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 32, "state_size": 16, "expand": 2}
SWITCHES = {"hidden_act": "silu", "use_bias": False, "use_conv_bias": True, "residual_in_fp32": True}
OTHERS = {"conv_kernel": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
DEFAULTS = SIZES | SWITCHES | OTHERS
# what the first files say besides, of the sizes above and of the code that trained them
INERT = ("d_model", "d_inner", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm", "pad_vocab_size_multiple")


def recurrent(c: HFConfig, norm: RMSNorm | None = None) -> Decoder:
    """Mamba's decoder; `norm` is that of time steps, B and C."""
    inner = c.get("intermediate_size", int(c.expand * c.hidden_size))
    rank = c.get("time_step_rank", "auto")
    rank = math.ceil(c.hidden_size / 16) if rank == "auto" else rank
    mixer = Mamba(inner, c.state_size, c.conv_kernel, rank, c.hidden_act, c.use_bias, c.use_conv_bias, norm)
    before = RMSNorm(c.layer_norm_epsilon)
    blocks = [Block(mixer, None, attn_in=before)] * c.num_hidden_layers
    return Decoder.from_hf(c, blocks=blocks, final_norm=before, embed=Embed(float32=c.residual_in_fp32))


@family("mamba", NAMES, defaults=DEFAULTS, inert=INERT)
def mamba(c: HFConfig) -> Decoder:
    return recurrent(c)
