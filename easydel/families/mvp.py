"""MVP (Tang et al. 2022, arXiv:2206.12131): BART, trained on many tasks; without the prompts of its variants."""

from easydel.families._parts import Decoder, EncoderDecoder, HFConfig, ShiftRight, family
from easydel.families.bart import CAUSAL, IN_ANY_CASE, NAMES, OF_ENCODER, alone, embed, whole

OF_PROMPTS = dict.fromkeys(("prompt_length", "prompt_mid_dim"), "a size of prompts, which are refused")


@family("mvp", NAMES, inert=IN_ANY_CASE | OF_PROMPTS, encoder_decoder=True)
def mvp(c: HFConfig) -> EncoderDecoder:
    c.only("use_prompt", False)
    return whole(c, embed(c), shift=ShiftRight(c.decoder_start_token_id, c.pad_token_id, from_inputs=True))


@family("mvp", CAUSAL, inert=OF_ENCODER | IN_ANY_CASE | OF_PROMPTS)
def mvp_decoder(c: HFConfig) -> Decoder:
    c.only("use_prompt", False)
    return alone(c, embed(c))
