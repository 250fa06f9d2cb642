"""Decoders from before Llama: learned positions or ALiBi, LayerNorms, plain MLPs, fused projections of every layout."""

from __future__ import annotations

from typing import Any

from cases import Case

SPECIAL = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
N_SIZES = {"n_embd": 48, "n_head": 6, "n_layer": 3, "n_positions": 64}
SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "max_position_embeddings": 64}


def case(
    model_type: str, name: str, sizes: dict[str, Any], *, tp: int = 2, attention: str = "eager", **config: Any
) -> Case:
    return Case(f"{model_type}-{name}", model_type, SPECIAL | sizes | config, tp=tp, attention=attention)


GPT2 = [
    case("gpt2", "plain", N_SIZES),
    case(
        "gpt2",
        "scaled-by-layer",
        N_SIZES,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        n_inner=80,
        activation_function="gelu",
        layer_norm_epsilon=1e-3,
    ),
    case("gpt2", "unscaled-untied", N_SIZES, scale_attn_weights=False, tie_word_embeddings=False),
]
GPT_BIGCODE = [
    case("gpt_bigcode", "multi-query", N_SIZES, tp=1, n_inner=80),
    case(
        "gpt_bigcode",
        "multi-head",
        N_SIZES,
        multi_query=False,
        scale_attn_weights=False,
        tie_word_embeddings=False,
        activation_function="gelu",
    ),
]
NEO = {"hidden_size": 48, "num_heads": 6, "num_layers": 3, "max_position_embeddings": 64, "window_size": 5}
GPT_NEO = [
    case("gpt_neo", "alternating", NEO | {"num_layers": 4}, attention_types=[[["global", "local"], 2]]),
    case(
        "gpt_neo",
        "irregular",
        NEO,
        attention_types=[[["local"], 2], [["global"], 1]],
        intermediate_size=80,
        tie_word_embeddings=False,
        activation_function="relu",
    ),
]
GPT_NEOX = [
    case("gpt_neox", "parallel", SIZES, intermediate_size=80),
    case(
        "gpt_neox",
        "sequential-unbiased-tied",
        SIZES,
        intermediate_size=80,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        hidden_act="gelu_fast",
        rotary_pct=0.5,
        rotary_emb_base=500,
        layer_norm_eps=1e-3,
    ),
    case(
        "gpt_neox",
        "stretched",
        SIZES,
        intermediate_size=80,
        rope_scaling={"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 1.0},
    ),
]
GPTJ = [
    case("gptj", "plain", N_SIZES, rotary_dim=4),
    case("gptj", "all-rotary-tied", N_SIZES, rotary_dim=8, n_inner=80, tie_word_embeddings=True),
]
FALCON = [
    case("falcon", "multi-query", SIZES, tp=1),
    case("falcon", "grouped", SIZES, new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False),
    case(
        "falcon",
        "grouped-one-norm",
        SIZES,
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=80,
        rope_theta=500.0,
        activation="relu",
        layer_norm_epsilon=1e-3,
    ),
    case("falcon", "multi-head-sequential", SIZES, multi_query=False, parallel_attn=False, bias=True),
    # With attention by hand, transformers 5.23 adds the biases twice: to the scores and once more in the mask.
    case("falcon", "alibi", SIZES, multi_query=False, parallel_attn=False, bias=True, alibi=True, attention="sdpa"),
    case("falcon", "alibi-multi-query", SIZES, tp=1, alibi=True, attention="sdpa"),
]
BLOOM_SIZES = {"hidden_size": 48, "n_head": 6, "n_layer": 3}
BLOOM = [
    case("bloom", "plain", BLOOM_SIZES),
    case(
        "bloom", "eight-heads-untied", BLOOM_SIZES | {"n_head": 8}, tie_word_embeddings=False, layer_norm_epsilon=1e-3
    ),
    case("bloom", "normed-residual", BLOOM_SIZES, apply_residual_connection_post_layernorm=True),
]
MPT_SIZES = {"d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 64}
MPT = [
    case("mpt", "plain", MPT_SIZES),
    case(
        "mpt",
        "clipped-steep-untied",
        MPT_SIZES,
        attn_config={"clip_qkv": 0.7, "softmax_scale": 0.5, "attn_impl": "triton"},
        norm_type="layernorm",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
]
OPT = [
    case("opt", "plain", SIZES, ffn_dim=80),
    case("opt", "post-norm-projected", SIZES, ffn_dim=80, do_layer_norm_before=False, word_embed_proj_dim=20),
    case(
        "opt",
        "unbiased-no-affine",  # Galactica
        SIZES,
        ffn_dim=80,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        activation_function="gelu",
        word_embed_proj_dim=48,
    ),
    case("opt", "projected-untied", SIZES, ffn_dim=80, word_embed_proj_dim=20, tie_word_embeddings=False),
    case("opt", "no-final-norm", SIZES, ffn_dim=80, _remove_final_layer_norm=True),
]
CASES = [*GPT2, *GPT_BIGCODE, *GPT_NEO, *GPT_NEOX, *GPTJ, *FALCON, *BLOOM, *MPT, *OPT]
