"""IQuest-Coder-V1 (IQuest Lab 2026, the model card of IQuestLab/IQuest-Coder-V1-40B-Instruct): Llama's form."""

from easydel.families import llama as base
from easydel.families._parts import Decoder, HFConfig, family


@family("iquestcoder", base.NAMES)
def iquestcoder(c: HFConfig) -> Decoder:
    return base.llama(c)
