"""Tiny models of xlm."""

from __future__ import annotations

from typing import Any

from cases import Case

SIZES = {"vocab_size": 97, "emb_dim": 48, "n_layers": 3, "n_heads": 6, "max_position_embeddings": 64}


def xlm(name: str, **config: Any) -> Case:
    both_ways = not config.get("causal", False)
    unread = ("transformer.lang_embeddings.weight",) if config.get("n_langs", 1) > 1 else ()
    return Case(f"xlm-{name}", "xlm", SIZES | config, slot_positions=True, looks_ahead=both_ways, not_exported=unread)


CASES = [
    xlm("causal", causal=True, gelu_activation=False, n_langs=3),
    xlm("untied", tie_word_embeddings=False, layer_norm_eps=1e-5),
]
