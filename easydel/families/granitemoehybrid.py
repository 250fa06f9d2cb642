"""Granite 4 (Granite Team 2025, the Granite 4.0 model cards): Granite with Mamba 2, attention without positions."""

from dataclasses import replace

from easydel.families import granite, granitemoe as base
from easydel.families._mamba2 import IN_PROJ, KERNELS, LINEAR, kinds, mixer
from easydel.families._parts import GLU, Attention, Decoder, Fused, HFConfig, MoE, TopK, family
from easydel.keys import FULL

# The feed-forward of all tokens has one name, whether there are experts beside it or not.
SHARED = ("mlp", "mlp.shared_expert")
MODULES = {"mixer": "mamba"} | {f"{place}.down_proj": "shared_mlp.output_linear" for place in SHARED}
GATE_UP = tuple(Fused("shared_mlp.input_linear", (f"{place}.gate_proj", f"{place}.up_proj")) for place in SHARED)
NAMES = base.NAMES.extended(MODULES, fused=(IN_PROJ, *GATE_UP))


@family("granitemoehybrid", NAMES, inert={"mamba_chunk_size": KERNELS})
def granitemoehybrid(c: HFConfig) -> Decoder:
    shared, expert = GLU(c.shared_intermediate_size, c.hidden_act), GLU(c.intermediate_size, c.hidden_act)
    router, experts = TopK(c.num_experts_per_tok, renormalize=True), c.num_local_experts
    plain = granite.multiplied(c, MoE(experts, expert, router, shared) if experts else shared)
    rotated = c.only("position_embedding_type", None, "nope", "rope") == "rope"
    attention = plain.blocks[0].mixer
    assert isinstance(attention, Attention)
    own = {LINEAR: mixer(c), FULL: attention if rotated else replace(attention, position=None)}
    mixers = [own[kind] for kind in kinds(c, [LINEAR] * c.num_hidden_layers)]
    blocks = [replace(block, mixer=mixer) for block, mixer in zip(plain.blocks, mixers, strict=True)]
    return replace(plain, blocks=tuple(blocks))
