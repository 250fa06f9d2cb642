"""Whisper's decoder alone (Radford et al. 2022, arXiv:2212.04356): BART's with norms before each part."""

from easydel.families._parts import Decoder, Embed, HFConfig, Learned, family
from easydel.families.bart import CAUSAL, OF_ENCODER, alone

NAMES = CAUSAL.extended({"lm_head": "proj_out"}, ignored=(r"proj_out\.weight",))
SOUND = (
    "apply_spec_augment mask_feature_length mask_feature_min_masks mask_feature_prob mask_time_length"
    " mask_time_min_masks mask_time_prob max_source_positions median_filter_width num_mel_bins use_weighted_layer_sum"
)
INERT = OF_ENCODER | dict.fromkeys(SOUND.split(), "of the sound that its encoder reads")
INERT |= dict.fromkeys(("begin_suppress_tokens", "suppress_tokens"), "settings of `generate`")
INERT |= {"scale_embedding": "transformers multiplies nothing with it"}


@family("whisper", NAMES, inert=INERT)
def whisper(c: HFConfig) -> Decoder:
    return alone(c, Embed(Learned(c.max_target_positions)), pre_norm=True, biased="qvo")
