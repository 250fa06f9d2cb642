"""Tiny models of inkling2_text."""

from __future__ import annotations

from cases import case
from cases.inkling_text import SMALL as INKLING

LEFT_OUT = ("intermediate_size", "logits_mup_width_multiplier")
SMALL = {key: value for key, value in INKLING.items() if key not in LEFT_OUT} | {"unpadded_vocab_size": 91}
SMALL |= {"qk_l2_clip_threshold": 2.0, "rel_l2_clip_threshold": 0.9, "log_scaling_n_floor": 4, "log_scaling_alpha": 0.7}
SMALL |= {"mlp_gate_softcap": 0.8, "mlp_up_softcap": 1.5, "final_logit_softcapping": 2.0}
KINDS = ["hybrid_sliding", "hybrid"]

CASES = [
    case(
        "inkling2_text",
        "blocks-of-two",
        SMALL,
        num_hidden_layers=5,
        n_layers_per_attn_res_block=2,
        layer_types=[*KINDS, *KINDS, KINDS[0]],
    ),
    case("inkling2_text", "full-layer-first", SMALL, layer_types=KINDS[::-1], num_hidden_layers=2, conv_kernel_size=3),
]
