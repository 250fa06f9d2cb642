"""Qwen4-Exp (Qwen Team 2026, the model card of Qwen/Qwen4-Exp): Qwen3.5-MoE with streams between layers, vectors of
n-grams, and attention to blocks of keys that an indexer chooses."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from easydel.expected import is_whole
from easydel.families import qwen3_5_text as dense
from easydel.families._layers import FULL, LINEAR, layer_types
from easydel.families._parts import (
    GLU,
    ConfigError,
    Decoder,
    DeltaNet,
    Fused,
    Gate,
    GatedStreams,
    GatedStreamsBlock,
    HFConfig,
    MoE,
    Names,
    NGramInput,
    NGramTable,
    Part,
    PooledIndexer,
    QKNorm,
    RMSNorm,
    Rope,
    TopK,
    family,
)
from easydel.families.llama import attention

INDEXED = "indexed_attention"
READER = {
    "norm": "hc_norm",
    "down": "input_mix_weight_down",
    "up": "input_mix_weight_up",
    "write": "block_inject_weight",
}
PLACES = {
    "attn_reader": "attn_hyper_connection",
    "ffn_reader": "mlp_hyper_connection",
    r"stream\.reader": "hyper_connection_mixer",
}
RENAMES = {rf"{ours}\.{part}": f"{theirs}.{name}" for ours, theirs in PLACES.items() for part, name in READER.items()}
RENAMES |= {
    "ngrams": "ple",
    r"ngrams\.table(\.last)?\.\*": "ple.ple_embedding.ngram_embedding.shard_*",
    r"indexer\.q_norm": "indexer.q_layernorm",
    r"indexer\.k_norm": "indexer.k_layernorm",
}
INDEX = Fused("indexer.index_qk_proj", ("indexer.wq", "indexer.wk"))
COMPUTED = r"model\.layers\.\d+\.ple\.ple_embedding\.(layer_multipliers|ngram_heads_vocab_sizes|ngram_heads_offsets)"
FLAT = ("hc_norm", "norm_key", "norm_query", "norm_conv")


def flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape without dimensions: all numbers in a row."""
    return (math.prod(shape),)


INDEXER = ("indexer_n_heads", "indexer_head_dim", "indexer_compress_ratio", "indexer_budget")


def names(c: HFConfig) -> Names:
    changes: dict[str, Any] = {"fused": (INDEX,), "ignored": (COMPUTED,), "listed": ("ple.table",)}
    return dense.names(c).extended(RENAMES, reshaped=dict.fromkeys(FLAT, flat), **changes)


def attending(c: HFConfig, norm: RMSNorm, sizes: Sequence[Any]) -> Part:
    """Gated attention to what an indexer chooses."""
    own = attention(c, norms=QKNorm(norm), gate=Gate(bias=c.attention_bias), biased=c.attention_bias)
    assert isinstance(own.position, Rope)
    c.only("indexer_kv_heads", 1)
    if not all(is_whole(size) and size > 0 for size in sizes):
        raise ConfigError(f"layers of indexed attention need {', '.join(INDEXER)}, found {sizes}", file=c.file)
    heads, dim, block, budget = sizes
    if budget % block:
        raise ConfigError(f"indexer_budget={budget} is no multiple of indexer_compress_ratio={block}", file=c.file)
    return replace(own, select=PooledIndexer(heads, dim, block, budget // block, own.position, norm))


def mixers(c: HFConfig) -> list[Part]:
    linear = DeltaNet(
        c.linear_num_value_heads,
        c.linear_num_key_heads,
        c.linear_key_head_dim,
        c.linear_value_head_dim,
        c.linear_conv_kernel_dim,
        c.hidden_act,
        RMSNorm(c.rms_norm_eps),
        gate_act=c.get("output_gate_type") or c.hidden_act,
    )
    period = c.get("full_attention_interval", 4)
    default = [INDEXED if (layer + 1) % period == 0 else LINEAR for layer in range(c.num_hidden_layers)]
    kinds = layer_types(c, default, (LINEAR, INDEXED, FULL))  # older files call indexed layers full
    norm = RMSNorm(c.rms_norm_eps, offset=1.0)
    sizes = [c.get(key) for key in INDEXER]
    return [linear if kind == LINEAR else attending(c, norm, sizes) for kind in kinds]


def ngrams(c: HFConfig, norm: RMSNorm, dim: int, index: int) -> NGramInput:
    """What the layer with that number, among those with vectors of n-grams, adds: `dim` channels are its vectors'."""
    ends = c.get("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(end, int):
        raise ConfigError("n-grams end at eos_token_id, which is missing")
    table = NGramTable(
        vocab=c.vocab_size,
        order=c.ngram_size,
        heads=c.heads_per_ngram,
        dim=dim,
        base=c.ngram_vocab_size_base,
        divisor=c.make_ngram_vocab_size_divisible_by,
        parts=c.split_ngram_parts,
        index=index,
        seed=c.seed,
        separator=end,
    )
    return NGramInput(table, c.ple_conv_kernel_size, norm, c.hc_count, c.hidden_size)


@family("qwen4_exp_text", names)
def qwen4_exp_text(c: HFConfig) -> Decoder:
    norm, blocks = RMSNorm(c.rms_norm_eps, offset=1.0), []
    streams, with_ngrams = GatedStreams(c.hc_count, c.hc_lowrank, norm), sorted(set(c.get("ple_layer_ids") or []))
    expert, shared = (GLU(size, c.hidden_act) for size in (c.moe_intermediate_size, c.shared_expert_intermediate_size))
    router = TopK(c.num_experts_per_tok, renormalize=c.norm_topk_prob)
    ffn = MoE(c.num_experts, expert, router, shared, shared_gate=True)
    dim = c.get("ple_embed_dim") or c.hidden_size  # transformers writes it whether there are n-grams or not
    for layer, mixer in enumerate(mixers(c), start=1):
        added = ngrams(c, norm, dim, with_ngrams.index(layer)) if layer in with_ngrams else None
        blocks.append(GatedStreamsBlock(mixer, ffn, streams=streams, ngrams=added))
    return replace(Decoder.from_hf(c, blocks=blocks, final_norm=None), stream=streams)
