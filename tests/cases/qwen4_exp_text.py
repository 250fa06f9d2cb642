"""Tiny models of qwen4_exp_text."""

from __future__ import annotations

from dataclasses import replace

from cases import FULL, case
from cases.qwen3_5_moe_text import SIZES
from cases.qwen3_next import DELTA, LINEAR, SPARSE

INDEXED = "indexed_attention"
SMALL = SIZES | DELTA | SPARSE | {"layer_types": [LINEAR, INDEXED, LINEAR], "hc_count": 3, "hc_lowrank": 10}
SMALL |= {"indexer_n_heads": 3, "indexer_kv_heads": 1, "indexer_head_dim": 14}
SMALL |= {"indexer_budget": 6, "indexer_compress_ratio": 3}
NGRAMS = {"ple_layer_ids": [1, 3], "heads_per_ngram": 2, "ngram_vocab_size_base": 50, "split_ngram_parts": 4}
NGRAMS |= {"make_ngram_vocab_size_divisible_by": 8, "eos_token_id": [5, 2]}
TABLES = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")

CASES = [
    replace(
        case("qwen4_exp_text", "ngrams", SMALL, **NGRAMS),
        not_exported=tuple(f"model.layers.{layer}.ple.ple_embedding.{name}" for layer in (0, 2) for name in TABLES),
    ),
    replace(
        case(
            "qwen4_exp_text",
            "wider-ngrams-sigmoid-gates-biased",
            SMALL,
            **NGRAMS
            | {
                "ple_layer_ids": [2],
                "ngram_size": 4,
                "split_ngram_parts": 5,
                "ple_embed_dim": 12,
                "ple_conv_kernel_size": 2,
            },
            layer_types=[FULL, LINEAR],
            num_hidden_layers=2,
            output_gate_type="sigmoid",
            attention_bias=True,
            norm_topk_prob=False,
            hc_count=2,
        ),
        not_exported=tuple(f"model.layers.1.ple.ple_embedding.{name}" for name in TABLES),
    ),
]
