"""Tiny models of llama4_text."""

from __future__ import annotations

from dataclasses import replace

from cases import EXPERTS, FULL, LLAMA3, Case, case

CHUNKED = "chunked_attention"
SMALL = EXPERTS | {"intermediate_size": 40, "intermediate_size_mlp": 56, "head_dim": 10, "num_local_experts": 5}


def llama4(name: str, **config: object) -> Case:
    """transformers counts padding where it scales queries."""
    sizes = SMALL | {"attention_chunk_size": 4, "floor_scale": 3, "attn_scale": 0.7}
    return replace(case("llama4_text", name, sizes, **config), slot_positions=True)


CASES = [
    llama4("chunks", num_hidden_layers=5, num_experts_per_tok=1, interleave_moe_layer_step=2),
    llama4(
        "scaled-rope-biased",
        num_hidden_layers=4,
        no_rope_layers=[1, 0, 1, 0],
        layer_types=[CHUNKED, CHUNKED, FULL, FULL],
        use_qk_norm=False,
        attention_bias=True,
        moe_layers=[0, 3],
        rope_parameters=LLAMA3 | {"high_freq_factor": 1.0},  # a step, as in Scout
        tie_word_embeddings=True,
    ),
    llama4("without-tuning", no_rope_layer_interval=2, attn_temperature_tuning=False),
]
