"""GLM-4.7-Flash (Zhipu AI 2026, the model card of zai-org/GLM-4.7-Flash): GLM-4.5's experts, DeepSeek's attention."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import deepseek_v2 as v2
from easydel.families import deepseek_v3 as v3
from easydel.families import family, qwen2
from easydel.families import llama as base
from easydel.layers.mlp import GLU

SIZES = {"vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240, "num_hidden_layers": 47}
HEADS = {"num_attention_heads": 20, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256}
EXPERTS = {"n_routed_experts": 64, "n_shared_experts": 1, "moe_intermediate_size": 1536, "num_experts_per_tok": 4}
CHOICE = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.8}
OTHERS = {"max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "rope_interleave": True, "mlp_layer_types": None}
DEFAULTS = v2.DEFAULTS | SIZES | HEADS | EXPERTS | CHOICE | OTHERS


# first_k_dense_replace: files have it, but what counts is mlp_layer_types
@family("glm4_moe_lite", v3.names, defaults=DEFAULTS, aliases=v3.ALIASES, inert=(*v2.INERT, "first_k_dense_replace"))
def glm4_moe_lite(c: HFConfig) -> Decoder:
    kinds = c.mlp_layer_types or ["dense"] + ["sparse"] * (c.num_hidden_layers - 1)
    ffns = {"dense": GLU(c.intermediate_size, c.hidden_act), "sparse": v2.experts(c, v3.corrected_router(c))}
    mixers = [v2.latent_attention(c, interleaved=c.rope_interleave)] * c.num_hidden_layers
    return base.pre_norm(c, mixers, [ffns[kind] for kind in qwen2.checked_types(c, "mlp_layer_types", kinds, [*ffns])])
