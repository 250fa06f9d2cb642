"""FlexOlmo (Shi et al. 2025, arXiv:2507.07024): OLMo 2's norms around OLMoE's experts, each trained on its own data."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, olmo2
from easydel.families import llama as base
from easydel.layers.mlp import GLU
from easydel.layers.moe import MoE, TopK

EXPERTS = {"num_experts": 7, "num_experts_per_tok": 5, "norm_topk_prob": False}
DEFAULTS = base.DEFAULTS | EXPERTS | {"vocab_size": 100352, "max_position_embeddings": 4096, "rope_theta": 5e5}


@family("flex_olmo", olmo2.NAMES, defaults=DEFAULTS, aliases={"num_experts": "num_local_experts"})
def flex_olmo(c: HFConfig) -> Decoder:
    router = TopK(c.num_experts_per_tok, c.norm_topk_prob)
    return olmo2.post_norm(
        c, olmo2.normed_attention(c), MoE(c.num_experts, GLU(c.intermediate_size, c.hidden_act), router)
    )
