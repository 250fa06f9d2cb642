"""GLM-4.7-Flash (Zhipu AI 2026, the model card of zai-org/GLM-4.7-Flash): GLM-4.5's experts, DeepSeek's attention."""

from easydel.families import deepseek_v2 as v2, deepseek_v3 as v3, llama as base
from easydel.families._experts import FUSED_BY_PEFT, corrected_router, experts
from easydel.families._layers import checked_types
from easydel.families._parts import GLU, Decoder, HFConfig, family


@family("glm4_moe_lite", v3.names, peft_lacks=FUSED_BY_PEFT)
def glm4_moe_lite(c: HFConfig) -> Decoder:
    kinds = c.mlp_layer_types or ["dense"] + ["sparse"] * (c.num_hidden_layers - 1)
    ffns = {"dense": GLU(c.intermediate_size, c.hidden_act), "sparse": experts(c, corrected_router(c))}
    mixers = [v2.latent_attention(c, interleaved=c.rope_interleave)] * c.num_hidden_layers
    return base.pre_norm(c, mixers, [ffns[kind] for kind in checked_types(c, "mlp_layer_types", kinds, [*ffns])])
