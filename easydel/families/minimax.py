"""MiniMax-Text-01 and M1 (MiniMax 2025, arXiv:2501.08313): lightning attention in every other layer, Mixtral's experts,
and residuals that are scaled and come after norms."""

from easydel.families import llama as base, mixtral
from easydel.families._layers import FULL, LINEAR, layer_types
from easydel.families._parts import (
    GLU,
    Block,
    Decoder,
    FromRead,
    Fused,
    HFConfig,
    Lightning,
    MoE,
    Names,
    RMSNorm,
    TopK,
    family,
    grouped,
)

RENAMES = {r"linear_attn\.in_proj_z": "self_attn.output_gate", "linear_attn": "self_attn"}
DECAYS = r"model\.layers\.\d+\.self_attn\.(slope_rate|(query|key|diagonal)_decay)"  # follow from the config


def names(c: HFConfig) -> Names:
    parts = tuple(f"linear_attn.in_proj_{part}" for part in "qkv")
    fused = Fused("linear_attn.qkv_proj", parts, grouped(c.num_attention_heads))
    return mixtral.NAMES.extended(RENAMES, fused=(fused,), ignored=(DECAYS,))


def lightning(c: HFConfig, layer: int) -> Lightning:
    """The later a layer, the slower it forgets."""
    heads, last = c.num_attention_heads, c.num_hidden_layers - 1
    dim = c.get("head_dim") or c.hidden_size // heads
    return Lightning(heads, dim, c.hidden_act, RMSNorm(1e-6), 1 - layer / (last + 1e-5) + 1e-5)


@family("minimax", names, inert={"block_size": "how many tokens are computed at once"})
def minimax(c: HFConfig) -> Decoder:
    norm, layers = RMSNorm(c.rms_norm_eps), range(c.num_hidden_layers)
    router = TopK(c.num_experts_per_tok, renormalize=True)
    after = FromRead(c.mlp_alpha_factor, c.mlp_beta_factor)
    how = {"ffn": MoE(c.num_local_experts, GLU(c.intermediate_size, c.hidden_act), router), "ffn_residual": after}
    how |= {"attn_in": norm, "ffn_in": norm}
    full = FromRead(c.full_attn_alpha_factor, c.full_attn_beta_factor)
    linear = FromRead(c.linear_attn_alpha_factor, c.linear_attn_beta_factor)
    attending = Block(base.attention(c, window=c.sliding_window), residual=full, **how)
    default = [LINEAR if i % 2 else FULL for i in layers]
    kinds = layer_types(c, default, (FULL, LINEAR))
    blocks = [
        attending if kind == FULL else Block(lightning(c, i), residual=linear, **how)
        for i, kind in zip(layers, kinds, strict=True)
    ]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)
