"""Tiny models of rwkv."""

from __future__ import annotations

from cases import Case

SIZES = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "context_length": 64, "pad_token_id": 0}
SIZES |= {"use_cache": False}  # transformers writes over its state, which has no gradient then
# transformers takes padding for tokens
CASES = [
    Case("rwkv-rescaled", "rwkv", SIZES | {"rescale_every": 1, "layer_norm_epsilon": 1e-3}, slot_positions=True),
    Case(
        "rwkv-tied-longer-than-a-chunk",
        "rwkv",
        SIZES | {"rescale_every": 0, "intermediate_size": 80, "tie_word_embeddings": True},
        length=140,
        slot_positions=True,
    ),
]
