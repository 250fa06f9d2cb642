"""Trinity (Arcee AI 2025, the model card of arcee-ai/Trinity-Mini): gated attention, sandwich norms, experts."""

from easydel.families import llama as base
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._layers import FULL, SLIDING, alternating
from easydel.families._parts import GLU, Block, Decoder, Embed, Gate, HFConfig, MoE, QKNorm, RMSNorm, TopK, family

NAMES = base.NAMES.extended(
    {
        "post_attention_layernorm": "pre_mlp_layernorm",
        "attn_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_mlp_layernorm",
        "mlp.gate": "mlp.router.gate",
        "mlp.gate.correction_bias": "mlp.expert_bias",
        "shared_expert": "shared_experts",
    },
    exact=(r"\w*norm",),
)


@family("afmoe", NAMES, peft_lacks=FUSED_BY_PEFT)
def afmoe(c: HFConfig) -> Decoder:
    norm, act, size, bias = RMSNorm(c.rms_norm_eps), c.hidden_act, c.moe_intermediate_size, c.attention_bias
    choices = {"biased": bias, "norms": QKNorm(norm), "gate": Gate()}
    kinds = {
        SLIDING: base.attention(c, window=c.sliding_window, **choices),
        FULL: base.attention(c, position=None, **choices),
    }
    router = TopK(c.num_experts_per_tok, True, c.route_scale, "sigmoid", corrected=True)
    sparse = MoE(c.num_experts, GLU(size, act), router, GLU(size * c.num_shared_experts, act))
    dense, first = GLU(c.intermediate_size, act), c.num_dense_layers
    blocks = [
        Block(kinds[kind], dense if i < first else sparse, attn_in=norm, attn_out=norm, ffn_in=norm, ffn_out=norm)
        for i, kind in enumerate(alternating(c, c.global_attn_every_n_layers))
    ]
    embed = Embed(scale=c.hidden_size**0.5 if c.mup_enabled else 1.0)
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm, embed=embed)
