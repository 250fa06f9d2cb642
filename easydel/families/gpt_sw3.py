"""GPT-SW3 (Ekgren et al. 2023, arXiv:2305.12987): GPT-2 for the Nordic languages. Its files also say `gpt2`."""

from easydel.families import gpt2 as base
from easydel.families._parts import family

gpt_sw3 = family("gpt-sw3", base.NAMES, inert=base.INERT)(base.gpt2)
