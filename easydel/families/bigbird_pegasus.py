"""BigBird-Pegasus' decoder alone (Zaheer et al. 2020, arXiv:2007.14062), which sees everything before."""

from dataclasses import replace

from easydel.families._parts import Decoder, Embed, Head, HFConfig, Learned, family
from easydel.families.bart import CAUSAL, DECODER, IN_ANY_CASE, OF_ENCODER, SHARED, alone, scale

NAMES = CAUSAL.extended(
    {r"model\.norm": "model.decoder.layernorm_embedding"}, substitutes={"lm_head.weight": (DECODER, SHARED)}
)
SPARSE = dict.fromkeys(("attention_type", "block_size", "num_random_blocks"), "of the encoder's sparse attention")


@family("bigbird_pegasus", NAMES, inert=OF_ENCODER | IN_ANY_CASE | SPARSE)
def bigbird_pegasus(c: HFConfig) -> Decoder:
    own = Embed(Learned(c.max_position_embeddings), scale=scale(c))
    record = alone(c, own, pre_norm=True, biased="qkvo" if c.use_bias else "")
    return replace(record, head=Head(tied=False))  # transformers ties no head to the decoder alone
