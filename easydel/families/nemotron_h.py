"""Nemotron-H and Nemotron 3 (NVIDIA 2025, arXiv:2504.03624; arXiv:2512.20848): each layer is a part of one kind."""

from collections.abc import Callable

from easydel.families import llama as base
from easydel.families._experts import corrected_router
from easydel.families._mamba2 import IN_PROJ, KERNELS, LEGACY, LINEAR
from easydel.families._parts import (
    MLP,
    Block,
    Decoder,
    GatedNorm,
    HFConfig,
    Mamba2,
    MoE,
    RMSNorm,
    UnsupportedModelError,
    family,
)
from easydel.keys import FULL

LAYER = {"self_attn": "mixer", "mlp": "mixer", "input_layernorm": "norm", "post_attention_layernorm": "norm"}
EXPERTS = {
    "shared_expert": "shared_experts",
    "latent_in_proj": "fc1_latent_proj",
    "latent_out_proj": "fc2_latent_proj",
    "gate.correction_bias": "gate.e_score_correction_bias",
}
EMBEDDINGS = {"model.embed_tokens": "backbone.embeddings", "model.norm": "backbone.norm_f"}
NAMES = base.NAMES.extended(LAYER | EXPERTS | EMBEDDINGS, fused=(IN_PROJ,), prefix="backbone", ignored=(r"mtp\..*",))
# As files of 2025 call them.
ALIASES = {"mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias"}
AHEAD = "layers that predict tokens further ahead, for speculation, are left out"
INERT = {
    "attention_bias": "the attention, which is another family's, has none",
    "chunk_size": KERNELS,
    "expand": "heads times their channels tell",
    "mamba_proj_bias": "use_bias tells",
    "mamba_ssm_cache_dtype": "states are float32",
    "moe_shared_expert_overlap": "when it is computed",
    "mtp_layers_block_type": AHEAD,
    "n_shared_experts": "moe_shared_expert_intermediate_size tells",
    "num_nextn_predict_layers": AHEAD,
    "residual_in_fp32": "no layer asks for it",
    "sliding_window": "masks are made without it",
    "time_step_limit": "time_step_min tells",
}


def recurrent(c: HFConfig) -> Block:
    norm, groups = RMSNorm(c.layer_norm_epsilon), c.n_groups
    sizes = (c.mamba_num_heads, c.mamba_head_dim, groups, c.ssm_state_size, c.conv_kernel)
    choices = {"bias": c.use_bias, "out_bias": c.use_bias, "conv_bias": c.use_conv_bias}
    limits = (c.get("time_step_min", 0.001), float("inf"))
    mixer = Mamba2(*sizes, c.mamba_hidden_act, GatedNorm(norm, groups), limits=limits, **choices)
    return Block(mixer, None, attn_in=norm)


def attention(c: HFConfig) -> Block:
    mixer = base.assembled(c.num_attention_heads, {"kv": c.num_key_value_heads, "dim": c.head_dim})
    return Block(mixer, None, attn_in=RMSNorm(c.layer_norm_epsilon))


def dense(c: HFConfig) -> Block:
    return Block(None, mlp(c, c.intermediate_size), ffn_in=RMSNorm(c.layer_norm_epsilon))


def experts(c: HFConfig) -> Block:
    """Routed experts, which may work in a latent space, and a shared one."""
    expert, shared = (
        MLP(c.moe_intermediate_size, c.mlp_hidden_act, False),
        mlp(c, c.moe_shared_expert_intermediate_size),
    )
    if latent := c.moe_latent_size:
        c.only("mlp_bias", False)
    ffn = MoE(c.n_routed_experts, expert, corrected_router(c), shared, latent=latent)
    return Block(None, ffn, ffn_in=RMSNorm(c.layer_norm_epsilon))


def mlp(c: HFConfig, hidden: int) -> MLP:
    return MLP(hidden, c.mlp_hidden_act, c.mlp_bias)


KINDS: dict[str, Callable[[HFConfig], Block]] = {LINEAR: recurrent, FULL: attention, "moe": experts, "mlp": dense}
LETTERS = {"M": LINEAR, "*": FULL, "E": "moe", "-": "mlp"}


def kinds(c: HFConfig) -> list[str]:
    """The kind of each layer: in a list, or in older files by a letter for each."""
    letters = [LETTERS.get(letter, letter) for letter in c.get("hybrid_override_pattern") or ""]
    stated = c.get("layers_block_type") or letters or [LINEAR, "moe", FULL, "mlp"]
    found = [LEGACY.get(kind, kind) for kind in stated]
    c.get("num_hidden_layers")  # as transformers, by the list alone
    if unknown := sorted(set(found) - KINDS.keys()):
        raise UnsupportedModelError(f"layers are {', '.join(unknown)}, known are {', '.join(KINDS)}")
    return found


@family("nemotron_h", NAMES, aliases=ALIASES, inert=INERT)
def nemotron_h(c: HFConfig) -> Decoder:
    c.only("tie_word_embeddings", False)  # transformers never ties them
    made = {kind: make(c) for kind, make in KINDS.items()}
    return Decoder.from_hf(c, blocks=[made[kind] for kind in kinds(c)], final_norm=RMSNorm(c.layer_norm_epsilon))
