"""A.X K1 (SK Telecom 2026, arXiv:2601.09200): DeepSeek-V3 with a norm after the experts."""

from dataclasses import replace

from easydel.families import deepseek_v2 as v2, llama as base
from easydel.families._experts import CORRECTED, by_type, corrected_router, experts
from easydel.families._parts import GLU, Decoder, HFConfig, MoE, Names, Part, RMSNorm, TopK, family


def feed_forwards(c: HFConfig, router: TopK) -> list[Part]:
    """Old files say which layers have experts as DeepSeek-V3's do."""
    sparse, dense = experts(c, router), GLU(c.intermediate_size, c.hidden_act)
    first, step = c.get("first_k_dense_replace", 1), c.get("moe_layer_freq", 1)
    if c.get("mlp_layer_types"):
        return by_type(c, sparse, dense, first)
    return [sparse if i >= first and i % step == 0 else dense for i in range(c.num_hidden_layers)]


def names(c: HFConfig) -> Names:
    """Files hold norms of dense layers, which nothing reads, and may lack the correction of the choice."""
    sparse = {i: isinstance(ffn, MoE) for i, ffn in enumerate(feed_forwards(c, corrected_router(c)))}
    dense = "|".join(str(i) for i, found in sparse.items() if not found)
    return v2.NAMES.extended(
        CORRECTED | {"mlp_output_layernorm": "post_mlp_layernorm"},
        ignored=(rf"model\.layers\.({dense})\.post_mlp_layernorm\.weight",) if dense else (),
        optional=tuple(f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i, found in sparse.items() if found),
    )


@family("axk1", names)
def axk1(c: HFConfig) -> Decoder:
    mixers = [v2.latent_attention(c, interleaved=c.rope_interleave)] * c.num_hidden_layers
    plain, norm = base.pre_norm(c, mixers, feed_forwards(c, corrected_router(c))), RMSNorm(c.rms_norm_eps)
    blocks = [replace(block, ffn_out=norm if isinstance(block.ffn, MoE) else None) for block in plain.blocks]
    return replace(plain, blocks=tuple(blocks))
