"""InternLM3 (Shanghai AI Laboratory 2025, the model card of internlm/internlm3-8b-instruct): Llama with wide heads."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, UnsupportedModelError, family


@family("internlm3", base.NAMES)
def internlm3(c: HFConfig) -> Decoder:
    if c.mlp_bias != c.attention_bias:  # its authors' code has another split of biases, which no file uses
        problem = f"attention_bias is {c.attention_bias} and mlp_bias is {c.mlp_bias}: only equal ones are known"
        raise UnsupportedModelError(problem, file=c.file)
    return base.llama(c)
