"""Hunyuan-A13B (Tencent 2025, the Hunyuan-A13B technical report): the dense Hunyuan with routed and shared experts."""

from easydel.families import hunyuan_v1_dense as dense, llama as base
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, TopK, family

NAMES = dense.NAMES.extended({"mlp.gate": "mlp.gate.wg", "shared_expert": "shared_mlp"})


@family(
    "hunyuan_v1_moe",
    NAMES,
    defaults={"moe_topk": None},  # the class's default is 1, but the key may also hold a list
    inert={"num_shared_expert": "one, as big as the others"},
    peft_lacks=FUSED_BY_PEFT,
)
def hunyuan_v1_moe(c: HFConfig) -> Decoder:
    c.only("norm_topk_prob", True)
    expert, chosen, layers = GLU(c.intermediate_size, c.hidden_act), c.get("moe_topk", 1), c.num_hidden_layers
    each = chosen if isinstance(chosen, list) else [chosen] * layers
    ffns = [MoE(c.num_experts, expert, TopK(k, renormalize=True), expert) for k in each]
    return base.pre_norm(c, [dense.attention(c)] * layers, ffns)
