"""Flint (Recursive 2026, the model card of RecursiveSI/flint): Qwen3-MoE with sinks and unrotated full layers."""

from easydel.families import llama as base
from easydel.families._layers import FULL, SLIDING, layer_types
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, QKNorm, RMSNorm, TopK, family


@family("flint", base.NAMES.extended({"sinks": "softmax_offset"}, exact=(r"mlp\.gate",)))
def flint(c: HFConfig) -> Decoder:
    last, act, bias = c.num_hidden_layers - 1, c.hidden_act, c.attention_bias
    choices = {"biased": bias, "norms": QKNorm(RMSNorm(c.rms_norm_eps)), "sinks": True}
    kinds = {
        SLIDING: base.attention(c, window=c.sliding_window, **choices),
        FULL: base.attention(c, position=None, **choices),
    }
    default = [FULL if i < 2 or i % 4 == 1 or i == last else SLIDING for i in range(last + 1)]
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob, score="sigmoid")
    shared = GLU(c.shared_expert_intermediate_size, act)
    sparse = MoE(c.num_experts, GLU(c.moe_intermediate_size, act), router, shared)
    dense, step, only = GLU(c.intermediate_size, act), c.decoder_sparse_step, c.get("mlp_only_layers", [0, 1])
    ffns = [dense if i in only or (i + 1) % step else sparse for i in range(last + 1)]
    return base.pre_norm(c, [kinds[kind] for kind in layer_types(c, default)], ffns)
