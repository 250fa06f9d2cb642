"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): OLMo 2's norm on queries and keys, and experts in each layer."""

from easydel.families import llama as base
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, QKNorm, RMSNorm, TopK, family


@family("olmoe", base.NAMES, peft_lacks=FUSED_BY_PEFT)
def olmoe(c: HFConfig) -> Decoder:
    norm, bias, layers = QKNorm(RMSNorm(c.rms_norm_eps), whole=True), c.attention_bias, c.num_hidden_layers
    mixer = base.attention(c, biased=bias, norms=norm, clip=c.clip_qkv)
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    ffn = MoE(c.num_experts, GLU(c.intermediate_size, c.hidden_act), router)
    return base.pre_norm(c, [mixer] * layers, [ffn] * layers)
