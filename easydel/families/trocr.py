"""TrOCR's decoder (Li et al. 2021, arXiv:2109.10282): that of BART, of which parts may be left out."""

from easydel.families._parts import Decoder, Embed, HFConfig, Learned, Sinusoidal, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NORM, alone, scale

NAMES = CAUSAL.extended({"lm_head": "output_projection"}, ignored=(r"output_projection\.weight",))


@family("trocr", NAMES, inert=IN_ANY_CASE | {"cross_attention_hidden_size": "the encoder's"})
def trocr(c: HFConfig) -> Decoder:
    length, norm = c.max_position_embeddings, NORM if c.layernorm_embedding else None
    waves = Sinusoidal(c.pad_token_id + 1, endpoint=True)
    positions = Learned(length, offset=2) if c.use_learned_position_embeddings else waves
    return alone(c, Embed(positions, norm, scale(c)))
