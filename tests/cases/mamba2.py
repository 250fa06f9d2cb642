"""Tiny models of mamba2."""

from __future__ import annotations

from cases import Case

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_heads": 6,
    "head_dim": 16,
    "state_size": 5,
    "n_groups": 2,
    "num_hidden_layers": 3,
    "chunk_size": 8,
    "pad_token_id": 0,
}
# transformers masks padding before the projection in, whose bias then fills it for the convolution after
BIASED = SIZES | {
    "time_step_limit": [0.1, 0.7],
    "use_bias": True,
    "num_heads": 4,
    "head_dim": 36,
    "expand": 3,
    "n_groups": 4,
    "conv_kernel": 3,
}
CASES = [
    Case("mamba2-grouped", "mamba2", SIZES | {"use_conv_bias": False, "residual_in_fp32": False}),
    Case("mamba2-biased-tied-limited", "mamba2", BIASED | {"tie_word_embeddings": True}, slot_positions=True),
    Case("mamba2-longer-than-a-chunk", "mamba2", SIZES | {"hidden_act": "gelu", "n_groups": 1}, length=140),
]
