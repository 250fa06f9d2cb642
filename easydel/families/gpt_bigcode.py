"""StarCoder and SantaCoder (Li et al. 2023, arXiv:2305.06161): GPT-2 whose heads share one key and one value."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import gpt2 as base
from easydel.weights.names import QKV, Fused, Names, concatenated, grouped

DEFAULTS = base.DEFAULTS | {"activation_function": "gelu_pytorch_tanh", "multi_query": True}
DEFAULTS = {key: value for key, value in DEFAULTS.items() if key != "scale_attn_by_inverse_layer_idx"}
# Scores are always float32 here; the number of key heads repeats multi_query; the rest is from its training.
INERT = (
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
    "num_key_value_heads",
    "n_ctx",
    "inference_runner",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "validate_runner_input",
)


def names(c: HFConfig) -> Names:
    layout = concatenated if c.multi_query else grouped(c.num_attention_heads)
    fused = (Fused("self_attn.c_attn", QKV, layout),)
    return Names(base.RENAMES, fused, ignored=(base.MASKS,), prefix="transformer")


@family("gpt_bigcode", names, defaults=DEFAULTS, aliases=base.ALIASES, inert=INERT)
def gpt_bigcode(c: HFConfig) -> Decoder:
    kv_heads = 1 if c.multi_query else c.num_attention_heads
    mixer = base.attention(c, kv_heads=kv_heads, scale=None if c.scale_attn_weights else 1.0)
    return base.pre_norm(c, [mixer] * c.num_hidden_layers, c.get("n_inner"))
