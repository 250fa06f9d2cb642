"""AFM-4.5B (Arcee AI 2025, the model card of arcee-ai/AFM-4.5B): Llama with squared ReLUs in plain MLPs."""

from easydel.families import llama as base
from easydel.families._parts import MLP, Decoder, HFConfig, family


@family("arcee", base.NAMES)
def arcee(c: HFConfig) -> Decoder:
    mixer, layers = base.attention(c, biased=c.attention_bias), c.num_hidden_layers
    return base.pre_norm(c, [mixer] * layers, [MLP(c.intermediate_size, c.hidden_act, c.mlp_bias)] * layers)
