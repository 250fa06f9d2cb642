"""BitNet b1.58 (Ma et al. 2025, arXiv:2504.12285): norms before the last projection of each part, gated squared ReLUs.

Weights are floats or packed ternary ones. Activations are not rounded, and files that want weights rounded during the
computation ("online") are refused.
"""

from easydel.families import llama as base
from easydel.families._parts import GLU, Decoder, HFConfig, RMSNorm, family

NAMES = base.NAMES.extended({"out_norm": "attn_sub_norm", r"mlp\.norm": "mlp.ffn_sub_norm"})


@family("bitnet", NAMES)
def bitnet(c: HFConfig) -> Decoder:
    norm, bias, layers = RMSNorm(c.rms_norm_eps), c.attention_bias, c.num_hidden_layers
    mixer = base.attention(c, biased=bias, out_norm=norm)
    return base.pre_norm(c, [mixer] * layers, [GLU(c.intermediate_size, c.hidden_act, norm=norm)] * layers)
