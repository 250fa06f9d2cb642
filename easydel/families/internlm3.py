"""InternLM3 (Shanghai AI Laboratory 2025, the model card of internlm/internlm3-8b-instruct): Llama with wide heads."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("internlm3", base.NAMES)
def internlm3(c: HFConfig) -> Decoder:
    c.only("mlp_bias", c.attention_bias)  # its authors' code has another split of biases, which no file uses
    return base.llama(c)
