"""Mamba (Gu & Dao 2023, arXiv:2312.00752): recurrences in place of both attention and feed-forwards."""

import math

from easydel.families._parts import Block, Decoder, Embed, HFConfig, Mamba, Names, RMSNorm, family

EMBEDDINGS = {"model.embed_tokens": "backbone.embeddings", "model.norm": "backbone.norm_f"}
NAMES = Names(EMBEDDINGS | {"input_layernorm": "norm"}, prefix="backbone")
PEFT_LACKS = ("out_proj",)  # the fast path for CUDA reads its kernel itself, so PEFT 0.21 refuses (tuners_utils.py)


def recurrent(c: HFConfig, norm: RMSNorm | None = None) -> Decoder:
    """Returns Mamba's decoder; `norm` acts on time steps, B and C."""
    inner = c.get("intermediate_size", int(c.expand * c.hidden_size))
    rank = c.get("time_step_rank", "auto")
    rank = math.ceil(c.hidden_size / 16) if rank == "auto" else rank
    mixer = Mamba(inner, c.state_size, c.conv_kernel, rank, c.hidden_act, c.use_bias, c.use_conv_bias, norm)
    before = RMSNorm(c.layer_norm_epsilon)
    blocks = [Block(mixer, None, attn_in=before)] * c.num_hidden_layers
    return Decoder.from_hf(c, blocks=blocks, final_norm=before, embed=Embed(float32=c.residual_in_fp32))


@family("mamba", NAMES, peft_lacks=PEFT_LACKS)
def mamba(c: HFConfig) -> Decoder:
    return recurrent(c)
