"""Llama with every rotary scaling."""

from __future__ import annotations

from cases import Case

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def llama(name: str, **config: object) -> Case:
    return Case(f"llama-{name}", "llama", SIZES | config)


def rope(kind: str, **settings: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **settings}}


CASES = [
    llama("plain"),
    llama("tied-biased", tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=10),
    llama("linear", **rope("linear", factor=3.0)),
    Case(
        "llama-dynamic",
        "llama",
        SIZES | {"max_position_embeddings": 8} | rope("dynamic", factor=2.0),
        growing_rope=True,
    ),
    llama("yarn", **rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5)),
    llama(
        "llama3",
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
]
