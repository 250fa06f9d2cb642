"""Tiny models of xlstm."""

from __future__ import annotations

from cases import Case

# transformers' cache has room for multiples of 64 channels alone, and it takes padding for tokens
SIZES = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_heads": 6, "use_cache": False}
SIZES |= {"pad_token_id": 0, "gate_soft_cap": 5.0, "output_logit_soft_cap": 3.0}
CASES = [
    Case("xlstm-plain", "xlstm", SIZES | {"ffn_round_up_to_multiple_of": 8}, slot_positions=True),
    Case(
        "xlstm-biased-longer-than-a-chunk",
        "xlstm",
        SIZES | {"use_bias": True, "qk_dim_factor": 0.75, "v_dim_factor": 1.5, "eps": 1e-2},
        length=128,
        slot_positions=True,
    ),
]
