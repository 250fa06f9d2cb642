"""VaultGemma (Google 2025, arXiv:2510.15001): Gemma 2 without norms after the parts, trained with privacy."""

from dataclasses import replace

from easydel.families import gemma2
from easydel.families._parts import Decoder, HFConfig, family
from easydel.families.llama import NAMES as LLAMA

NAMES = LLAMA.extended({"post_attention_layernorm": "pre_feedforward_layernorm"})


@family("vaultgemma", NAMES)
def vaultgemma(c: HFConfig) -> Decoder:
    whole = gemma2.gemma2(c)
    return replace(whole, blocks=tuple(replace(block, attn_out=None, ffn_out=None) for block in whole.blocks))
