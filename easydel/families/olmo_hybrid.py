"""OLMo Hybrid (OLMo Team 2026, the model card of allenai/Olmo-Hybrid-7B): OLMo 3's attention without windows and often
without positions, after every three layers of gated delta rule, whose norms come before their halves."""

from easydel.families import llama as base
from easydel.families._layers import FULL, LINEAR, layer_types
from easydel.families._parts import GLU, Block, Decoder, DeltaNet, HFConfig, Names, QKNorm, RMSNorm, family

RENAMES = {
    "input_layernorm": "attention_layer_norm",
    "post_attention_layernorm": "feedforward_layer_norm",
    "attn_output_layernorm": "feedforward_layer_norm",
    "mlp_output_layernorm": "post_feedforward_layernorm",
    r"linear_attn\.in_proj_([qkvab])": r"linear_attn.\1_proj",
    r"linear_attn\.in_proj_z": "linear_attn.g_proj",
    r"linear_attn\.norm": "linear_attn.o_norm",
    r"linear_attn\.out_proj": "linear_attn.o_proj",
}
OTHERS = {"attention_layer_norm": "input_layernorm", "feedforward_layer_norm": "post_attention_layernorm"}
INITIAL = "of random initial values"


def names(c: HFConfig) -> Names:
    """Some files call norms as transformers' modules do."""
    layers = [f"model.layers.{layer}" for layer in range(c.num_hidden_layers)]
    others = {f"{at}.{name}.weight": (f"{at}.{other}.weight",) for at in layers for name, other in OTHERS.items()}
    return base.NAMES.extended(RENAMES, substitutes=others)


def linear(c: HFConfig) -> DeltaNet:
    heads, keys = (c.get(key, c.num_attention_heads) for key in ("linear_num_value_heads", "linear_num_key_heads"))
    key_dim = c.get("linear_key_head_dim", int(0.75 * c.hidden_size / keys))
    value_dim, negative = c.get("linear_value_head_dim", 2 * key_dim), c.linear_allow_neg_eigval
    norm, width = RMSNorm(1e-5), c.linear_conv_kernel_dim
    return DeltaNet(heads, keys, key_dim, value_dim, width, c.hidden_act, norm, negative=negative)


@family(
    "olmo_hybrid",
    names,
    inert={
        "linear_a_log_min": INITIAL,
        "linear_a_log_max": INITIAL,
        "linear_dt_min": INITIAL,
        "linear_dt_max": INITIAL,
        "linear_dt_init_floor": INITIAL,
    },
)
def olmo_hybrid(c: HFConfig) -> Decoder:
    norm, ffn, layers = RMSNorm(c.rms_norm_eps), GLU(c.intermediate_size, c.hidden_act), c.num_hidden_layers
    how = {"norms": QKNorm(norm, whole=True), "biased": "qkvo" if c.attention_bias else ""}
    rope = c.inside("rope_parameters")
    if "rope_theta" in rope and rope["rope_theta"] is None:
        how["position"] = None
    kinds = {
        LINEAR: Block(linear(c), ffn, attn_in=norm, ffn_in=norm),
        FULL: Block(base.attention(c, **how), ffn, attn_out=norm, ffn_out=norm),
    }
    default = [FULL if i % 4 == 3 or (layers < 4 and i == layers - 1) else LINEAR for i in range(layers)]
    blocks = [kinds[kind] for kind in layer_types(c, default, tuple(kinds))]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)
