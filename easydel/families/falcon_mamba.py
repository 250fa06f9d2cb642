"""Falcon Mamba (Zuo et al. 2024, arXiv:2410.05355): Mamba with norms on time steps, B and C."""

from easydel.families import mamba as base
from easydel.families._parts import Decoder, HFConfig, RMSNorm, family


@family("falcon_mamba", base.NAMES, peft_lacks=base.PEFT_LACKS)
def falcon_mamba(c: HFConfig) -> Decoder:
    return base.recurrent(c, RMSNorm(c.mixer_rms_eps, scaled=False))
