"""Falcon Mamba (Zuo et al. 2024, arXiv:2410.05355): Mamba with norms on time steps, B and C."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family
from easydel.families import mamba as base
from easydel.layers.norm import RMSNorm


@family("falcon_mamba", base.NAMES, defaults=base.DEFAULTS | {"mixer_rms_eps": 1e-6}, inert=base.INERT)
def falcon_mamba(c: HFConfig) -> Decoder:
    return base.recurrent(c, RMSNorm(c.mixer_rms_eps, scaled=False))
