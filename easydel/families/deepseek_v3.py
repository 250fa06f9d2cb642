"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437): V2 with sigmoid routing, corrected to spread the load."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import family
from easydel.families import llama as base
from easydel.layers.moe import Groups, TopK
from easydel.weights.names import Names

SIZES = {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61}
HEADS = {"num_attention_heads": 128, "num_key_value_heads": 128, "max_position_embeddings": 4096}
EXPERTS = {"n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048, "first_k_dense_replace": 3}
CHOICE = {"num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "norm_topk_prob": True}
DEFAULTS = v2.DEFAULTS | SIZES | HEADS | EXPERTS | CHOICE | {"routed_scaling_factor": 2.5, "rope_interleave": True}
ALIASES = {"n_routed_experts": "num_local_experts", "num_nextn_predict_layers": "num_mtp_layers"}
CORRECTED = {"gate.correction_bias": "gate.e_score_correction_bias"}


def names(c: HFConfig) -> Names:
    """Layers past the last predict tokens further ahead, for speculation: they are left out."""
    first, ahead = c.num_hidden_layers, c.get("num_nextn_predict_layers", 1)
    extra = "|".join(str(layer) for layer in range(first, first + ahead))
    return v2.NAMES.extended(CORRECTED, ignored=(rf"model\.layers\.({extra})\..*",) if ahead else ())


def corrected_router(c: HFConfig) -> TopK:
    # "noaux_tc": as files of dots.llm1 call it
    v2.require(c, "scoring_func", c.get("scoring_func", "sigmoid"), "sigmoid", "noaux_tc")
    v2.require(c, "topk_method", c.get("topk_method", "noaux_tc"), "noaux_tc")
    groups = Groups(c.n_group, c.topk_group, best=2) if c.n_group else None
    return TopK(c.num_experts_per_tok, c.norm_topk_prob, c.routed_scaling_factor, "sigmoid", True, groups)


@family("deepseek_v3", names, defaults=DEFAULTS, aliases=ALIASES, inert=v2.INERT)
def deepseek_v3(c: HFConfig) -> Decoder:
    mixers = [v2.latent_attention(c, interleaved=c.rope_interleave)] * c.num_hidden_layers
    return base.pre_norm(c, mixers, v2.feed_forwards(c, corrected_router(c)))
