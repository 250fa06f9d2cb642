"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437): V2 with sigmoid routing, corrected to spread the load."""

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import CORRECTED, FUSED_BY_PEFT, after_first, corrected_router
from easydel.families._parts import Decoder, HFConfig, Names, family


def names(c: HFConfig) -> Names:
    """Returns the table. It ignores layers past the last one, which predict tokens further ahead, for speculation."""
    first, ahead = c.num_hidden_layers, c.get("num_nextn_predict_layers", 1)
    extra = "|".join(str(layer) for layer in range(first, first + ahead))
    return v2.NAMES.extended(CORRECTED, ignored=(rf"model\.layers\.({extra})\..*",) if ahead else ())


@family("deepseek_v3", names, peft_lacks=FUSED_BY_PEFT)
def deepseek_v3(c: HFConfig) -> Decoder:
    mixers = [v2.latent_attention(c, interleaved=c.rope_interleave)] * c.num_hidden_layers
    return base.pre_norm(c, mixers, after_first(c, corrected_router(c)))
