"""Tiny models of llama: every rotary scaling."""

from __future__ import annotations

from cases import LLAMA3, SIZES, YARN, Case


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
    llama("yarn", rope_parameters=YARN),
    llama("llama3", rope_parameters=LLAMA3),
    llama("proportional", **rope("proportional", factor=3.0, partial_rotary_factor=0.5)),
]
