"""Mellum 2 (JetBrains 2026, the model card of JetBrains/Mellum2-12B-A2.5B-Base): Qwen3-MoE with a rope per kind."""

from easydel.families import llama as base
from easydel.families._experts import FUSED_BY_PEFT, by_type
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, QKNorm, RMSNorm, TopK, family

AHEAD = "of a layer that predicts further ahead, which is not loaded"


@family(
    "mellum",
    base.NAMES.extended(ignored=(r"mtp\..*",)),
    inert=dict.fromkeys(("num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"), AHEAD),
    peft_lacks=FUSED_BY_PEFT,
)
def mellum(c: HFConfig) -> Decoder:
    act, bias = c.hidden_act, c.attention_bias
    choices = {"biased": bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps))}
    kinds = {
        FULL: base.attention(c, rope=c.rope(FULL), **choices),
        SLIDING: base.attention(c, rope=c.rope(SLIDING), window=c.sliding_window, **choices),
    }
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    sparse = MoE(c.num_experts, GLU(c.moe_intermediate_size, act), router)
    mixers = [kinds[kind] for kind in layer_types(c, [FULL] * c.num_hidden_layers)]
    return base.pre_norm(c, mixers, by_type(c, sparse, GLU(c.intermediate_size, act), 0))
