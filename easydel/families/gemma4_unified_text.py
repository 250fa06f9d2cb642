"""Gemma 4 without towers for images and sound (Gemma Team 2026): dense, without inputs for each layer."""

from easydel.families import gemma4_text as gemma4
from easydel.families._parts import Decoder, HFConfig, family


@family("gemma4_unified_text", gemma4.names)
def gemma4_unified_text(c: HFConfig) -> Decoder:
    return gemma4.decoder(c, gemma4.dense(c))
