"""JetMoE (Shen et al. 2024, arXiv:2404.07413): experts in attention too, each with queries and an output of its own."""

from easydel.families import llama as base
from easydel.families._parts import (
    GLU,
    BiasedMoE,
    Block,
    Decoder,
    Fused,
    HFConfig,
    MixtureOfHeads,
    RMSNorm,
    TopK,
    family,
    rope_from_settings,
)
from easydel.families._records import widened

NAMES = base.NAMES.extended(
    {
        "self_attn": "self_attention",
        r"self_attn\.q_proj": "self_attention.experts.input_linear",
        r"self_attn\.o_proj": "self_attention.experts.output_linear",
        r"self_attn\.gate": "self_attention.experts.router.layer",
        r"self_attn\.bias": "self_attention.experts.bias",
        r"mlp\.experts\.down_proj": "mlp.output_linear",
        r"mlp\.gate": "mlp.router.layer",
    },
    fused=(
        Fused("self_attn.kv_proj", ("self_attn.k_proj", "self_attn.v_proj")),
        Fused("mlp.input_linear", ("mlp.experts.gate_proj", "mlp.experts.up_proj")),
    ),
    stacked_experts=True,
)


@family("jetmoe", NAMES)
def jetmoe(c: HFConfig) -> Decoder:
    experts, router = c.num_local_experts, TopK(c.num_experts_per_tok, renormalize=True)
    heads, dim = c.num_key_value_heads, c.kv_channels
    choices = {"kv": heads, "dim": dim, "position": rope_from_settings(c.rope(), dim)}
    plain = base.assembled(heads * router.k, choices)
    mixer = widened(MixtureOfHeads, plain, experts=experts, router=router)
    ffn = BiasedMoE(experts, GLU(c.intermediate_size, c.activation_function), router)
    norm = RMSNorm(1e-6)  # whatever rms_norm_eps says: it is that of the last norm
    block = Block(mixer, ffn, attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=RMSNorm(c.rms_norm_eps))
