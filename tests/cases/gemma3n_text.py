"""Tiny models of gemma3n_text."""

from __future__ import annotations

from cases import FULL, SLIDING, case

SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
SMALL |= {"head_dim": 10, "max_position_embeddings": 64, "vocab_size_per_layer_input": 83, "sliding_window": 5}
SMALL |= {"hidden_size_per_layer_input": 14, "laurel_rank": 7}
# Ids beyond the table read its row 0, for which torch has no gradient if it is that of padding.
SMALL |= {"pad_token_id": None}

CASES = [
    case(
        "gemma3n_text",
        "shared-keys-sparse",
        SMALL,
        num_hidden_layers=6,
        layer_types=[SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
        num_kv_shared_layers=3,
        activation_sparsity_pattern=[0.9, 0.7, 0.0, 0.0, 0.0, 0.0],
    ),
    case(
        "gemma3n_text",
        "own-keys-another-stream",
        SMALL,
        num_hidden_layers=3,
        intermediate_size=[80, 72, 72],
        layer_types=[SLIDING, FULL, FULL],
        num_kv_shared_layers=0,
        altup_num_inputs=3,
        altup_active_idx=1,
        attention_bias=True,
        tie_word_embeddings=False,
        final_logit_softcapping=3.0,
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
]
