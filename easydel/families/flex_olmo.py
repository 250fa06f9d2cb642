"""FlexOlmo (Shi et al. 2025, arXiv:2507.07024): OLMo 2's norms around OLMoE's experts, each trained on its own data."""

from easydel.families import olmo2
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, TopK, family


@family("flex_olmo", olmo2.NAMES, peft_lacks=FUSED_BY_PEFT)
def flex_olmo(c: HFConfig) -> Decoder:
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    return olmo2.post_norm(
        c, olmo2.normed_attention(c), MoE(c.num_experts, GLU(c.intermediate_size, c.hidden_act), router)
    )
