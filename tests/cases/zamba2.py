"""Tiny models of zamba2."""

from __future__ import annotations

from dataclasses import replace

from cases import SIZES, case

LINEAR, HYBRID = "linear_attention", "hybrid"
OWN = {"mamba_d_state": 5, "mamba_ngroups": 2, "n_mamba_heads": 6, "num_key_value_heads": 6, "adapter_rank": 4}
# transformers masks padding before the projection in, whose bias then fills it for the convolution after
BIASED = case(
    "zamba2",
    "biased-limited",
    SIZES | OWN,
    num_hidden_layers=2,
    layers_block_type=[HYBRID, LINEAR],
    add_bias_linear=True,
    intermediate_size=None,
    time_step_min=0.5,
)
CASES = [
    case(
        "zamba2",
        "two-blocks-adapted-rotated",
        SIZES | OWN,
        layers_block_type=[HYBRID, HYBRID, HYBRID],
        rms_norm_eps=1.0,  # without it small embeddings make gradients that float32 does not hold
        num_mem_blocks=2,
        use_shared_attention_adapter=True,
        use_mem_rope=True,
    ),
    replace(BIASED, slot_positions=True),
]
