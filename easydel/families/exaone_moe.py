"""K-EXAONE (LG AI Research 2026, arXiv:2601.01739): EXAONE 4's attention before norms, DeepSeek-V3's experts."""

from easydel.families import exaone4, llama as base
from easydel.families._experts import FUSED_BY_PEFT, by_type, corrected_router, experts
from easydel.families._parts import GLU, Decoder, HFConfig, family

NAMES = base.NAMES.extended(
    {"mlp.gate.correction_bias": "mlp.e_score_correction_bias", "shared_expert": "shared_experts"},
    ignored=(r"mtp.*",),
)


@family(
    "exaone_moe",
    NAMES,
    defaults={"sliding_window_pattern": None},  # as in EXAONE 4
    aliases={"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"},
    peft_lacks=FUSED_BY_PEFT,
)
def exaone_moe(c: HFConfig) -> Decoder:
    dense, first = GLU(c.intermediate_size, c.hidden_act), c.first_k_dense_replace
    return base.pre_norm(c, exaone4.attentions(c), by_type(c, experts(c, corrected_router(c)), dense, first))
