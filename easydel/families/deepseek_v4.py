"""DeepSeek-V4 (DeepSeek-AI 2026): several streams, attention to compressed keys, experts by token or by score."""

from dataclasses import replace
from typing import Any

from easydel.families._layers import SLIDING, checked_types
from easydel.families._parts import (
    Block,
    ByToken,
    CompressedAttention,
    Compressor,
    Decoder,
    EntryIndexer,
    HFConfig,
    HyperBlock,
    HyperConnections,
    LimitedGLU,
    MoE,
    Names,
    RMSNorm,
    Rope,
    Sinkhorn,
    TopK,
    family,
    rope_from_settings,
)

SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {SPARSE: 4, HEAVY: 128}
HASHED, SCORED = "hash_moe", "moe"
ATTENTION = {"q_a_proj": "wq_a", "q_a_norm": "q_norm", "q_b_proj": "wq_b", "kv_proj": "wkv", "kv_norm": "norm"}
ATTENTION |= {"o_a_proj": "wo_a", "o_b_proj": "wo_b", "sinks": "attn_sink"}
COMPRESSOR = {"kv_proj": "wkv", "gate_proj": "wgate", "kv_norm": "norm", "position_bias": "ape"}
HYPER = {"weight": "fn", "bias": "base", "gain": "scale"}
NAMES = Names(
    {"lm_head": "head", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    | {rf"(attn|ffn)_hc\.{ours}": rf"hc_\1_{theirs}" for ours, theirs in HYPER.items()}
    | {rf"stream\.weights\.{ours}": f"hc_head.hc_{theirs}" for ours, theirs in HYPER.items()}
    | {rf"self_attn\.{ours}": f"attn.{theirs}" for ours, theirs in ATTENTION.items()}
    | {rf"self_attn\.compressor\.{ours}": f"attn.compressor.{theirs}" for ours, theirs in COMPRESSOR.items()}
    | {rf"self_attn\.indexer\.{ours}": f"attn.indexer.compressor.{theirs}" for ours, theirs in COMPRESSOR.items()}
    | {r"self_attn\.indexer\.q_b_proj": "attn.indexer.wq_b", r"self_attn\.indexer": "attn.indexer"}
    | {"mlp": "ffn", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2", "shared_expert": "shared_experts"}
    | {r"gate\.correction_bias": "gate.bias", r"gate\.experts_of_token": "gate.tid2eid"},
    substitutes={"model.embed_tokens.weight": ("model.embed.weight",)}
    | {f"model.hc_head.hc_{theirs}": (f"model.hc_head_{theirs}",) for theirs in HYPER.values()},
    ignored=(r"(model\.)?mtp\..*",),
    exact=(r"\w*norm",),
)
INERT = {"attention_bias": "transformers has none", "mlp_bias": "transformers has none"}
INERT |= {"num_nextn_predict_layers": "layers that predict tokens further ahead, for speculation"}


def ropes(c: HFConfig) -> tuple[Rope, Rope]:
    """The rotation in layers that see single tokens alone, and in the others, where alone it is stretched."""
    nested = "main" in c.get("rope_parameters", {})
    rotated = c.get("qk_rope_head_dim", c.head_dim * 64 / 512)
    factor = c.get("partial_rotary_factor", rotated / c.head_dim)
    stated: dict[str, Any] = {} if nested else c.rope()
    if stated.get("rope_type") == "yarn" and not stated.get("attention_factor"):
        stated["attention_factor"] = 1.0  # DeepSeek's code multiplies angles by nothing
    theta, compressed_theta = c.rope_theta, c.compress_rope_theta
    length = {"max_position_embeddings": c.max_position_embeddings, "partial_rotary_factor": factor}
    main = c.rope("main") if nested else length | {"rope_type": "default", "rope_theta": theta}
    compress = c.rope("compress") if nested else stated | length | {"rope_theta": compressed_theta}
    plain, stretched = (rope_from_settings(one, c.head_dim, interleaved=True) for one in (main, compress))
    return replace(plain, trailing=True), replace(stretched, trailing=True)


def attentions(c: HFConfig) -> list[CompressedAttention]:
    norm, (plain, stretched) = RMSNorm(c.rms_norm_eps), ropes(c)
    c.only("num_key_value_heads", 1)
    sizes = (c.num_attention_heads, c.head_dim, c.q_lora_rank, c.sliding_window)
    stated = c.inside("compress_rates")
    rates = {kind: stated.get(kind, rate) for kind, rate in RATES.items()}
    rates = {SPARSE: c.get("compress_rate_csa", rates[SPARSE]), HEAVY: c.get("compress_rate_hca", rates[HEAVY])}
    sliding = CompressedAttention(*sizes, plain, norm, c.o_groups, c.o_lora_rank)
    entries, few = (Compressor(rates[kind], c.head_dim, stretched, norm) for kind in (SPARSE, HEAVY))
    entries = replace(entries, overlapping=True)
    indexer = EntryIndexer(c.index_n_heads, c.index_topk, c.q_lora_rank, replace(entries, dim=c.index_head_dim))
    heavy = replace(sliding, position=stretched, compressor=few)
    sparse = replace(heavy, compressor=entries, indexer=indexer)
    kinds = {SLIDING: sliding, SPARSE: sparse, HEAVY: heavy}
    layers, ratios = c.num_hidden_layers, {0: SLIDING} | {rate: kind for kind, rate in RATES.items()}
    default = [SPARSE if i > 1 and (i - 2) % 2 else HEAVY for i in range(layers)]
    if not c.get("layer_types") and c.get("compress_ratios"):
        stated = checked_types(c, "compress_ratios", _first(c.compress_ratios, layers), tuple(ratios))
        default = [ratios[ratio] for ratio in stated]
    stated = _first(c.get("layer_types") or default, layers)
    return [kinds[kind] for kind in checked_types(c, "layer_types", stated, tuple(kinds))]


def _first(values: Any, layers: int) -> Any:
    """Files also list the layers that predict further tokens, which are left out."""
    return values[:layers] if isinstance(values, list) else values


def ffns(c: HFConfig) -> list[MoE]:
    c.only("norm_topk_prob", True)
    score = c.only("scoring_func", "sqrtsoftplus", "sigmoid")
    router = TopK(c.num_experts_per_tok, True, c.routed_scaling_factor, score, corrected=True)
    expert = LimitedGLU(c.moe_intermediate_size, c.hidden_act, limit=c.swiglu_limit)
    scored = MoE(c.n_routed_experts, expert, router, expert)
    hashed = replace(scored, router=ByToken(c.vocab_size, replace(router, corrected=False)))
    kinds, layers, first = {HASHED: hashed, SCORED: scored}, c.num_hidden_layers, c.get("num_hash_layers", 3)
    types = list(c.get("mlp_layer_types") or [HASHED if i < first else SCORED for i in range(layers)])[:layers]
    return [kinds[kind] for kind in checked_types(c, "mlp_layer_types", types, tuple(kinds))]


@family("deepseek_v4", NAMES, inert=INERT)
def deepseek_v4(c: HFConfig) -> Decoder:
    norm = RMSNorm(c.rms_norm_eps)
    mix = Sinkhorn(c.hc_sinkhorn_iters)
    streams = HyperConnections(c.hc_mult, replace(norm, scaled=False), c.hc_eps, mix)
    parts = zip(attentions(c), ffns(c), strict=True)
    blocks: list[Block] = [HyperBlock(mixer, ffn, attn_in=norm, ffn_in=norm, streams=streams) for mixer, ffn in parts]
    return replace(Decoder.from_hf(c, blocks=blocks, final_norm=norm), stream=streams)
