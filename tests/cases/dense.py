"""Dense decoders close to Llama, with every switch that changes what they compute."""

from __future__ import annotations

from typing import Any

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
FULL, SLIDING = "full_attention", "sliding_attention"


def case(model_type: str, name: str, *, tp: int = 2, growing_rope: bool = False, **config: Any) -> Case:
    sized = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | SIZES | config
    return Case(f"{model_type}-{name}", model_type, sized, tp=tp, growing_rope=growing_rope)


MISTRAL = [
    case("mistral", "window", sliding_window=5),
    case("mistral", "no-window-wide-heads", sliding_window=None, head_dim=10, tie_word_embeddings=True),
]
QWEN2 = [
    case("qwen2", "plain", sliding_window=5, max_window_layers=1),  # a window that is not used
    case("qwen2", "upper-layers-slide", use_sliding_window=True, sliding_window=5, max_window_layers=1),
    case(
        "qwen2",
        "layer-types",
        use_sliding_window=True,
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        tie_word_embeddings=True,
    ),
]
QWEN3 = [
    case("qwen3", "plain", head_dim=10, tie_word_embeddings=True),
    case(
        "qwen3",
        "biased-sliding",
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
    ),
]
GEMMA = [
    case("gemma", "plain", head_dim=10),
    case("gemma", "one-kv-head-gelu", head_dim=16, num_key_value_heads=1, hidden_act="gelu", tp=1),
    case("gemma", "biased-untied", head_dim=8, attention_bias=True, tie_word_embeddings=False, hidden_act="relu"),
]
SMALL_CAPS: dict[str, Any] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA2 = [
    case("gemma2", "capped", head_dim=10, query_pre_attn_scalar=12, sliding_window=5, **SMALL_CAPS),
    case(
        "gemma2",
        "uncapped-layer-types",
        head_dim=8,
        sliding_window=5,
        layer_types=[FULL, SLIDING, FULL],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
        tie_word_embeddings=False,
        hidden_activation="silu",
    ),
]
GEMMA3 = [
    case("gemma3_text", "pattern", head_dim=10, num_hidden_layers=5, sliding_window=5, sliding_window_pattern=2),
    case(
        "gemma3_text",
        "two-ropes",
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
        attention_bias=True,
        tie_word_embeddings=False,
        final_logit_softcapping=3.0,
    ),
]
LONGROPE: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
LONGROPE |= {"short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0]}


def phi3(name: str, original: int, *, growing_rope: bool = False) -> Case:
    """Sequences of 13 tokens are below or beyond the `original` length, or outgrow it while being decoded."""
    config = {
        "original_max_position_embeddings": original,
        "rope_parameters": dict(LONGROPE),
        "max_position_embeddings": 64,
    }
    return case("phi3", name, growing_rope=growing_rope, **config)


PHI = [
    case("phi", "plain", head_dim=10, partial_rotary_factor=0.4, num_key_value_heads=None),
    case("phi", "qk-norm-tied", qk_layernorm=True, tie_word_embeddings=True, partial_rotary_factor=0.75),
]
PHI3 = [
    case("phi3", "window", sliding_window=5, tie_word_embeddings=True),
    phi3("longrope-below", 32),
    phi3("longrope-beyond", 8),
    phi3("longrope-outgrown", 11, growing_rope=True),
]
COHERE = [
    case("cohere", "plain", logit_scale=0.3),
    case("cohere", "qk-norm-biased-untied", use_qk_norm=True, attention_bias=True, tie_word_embeddings=False),
]
COHERE2 = [
    case("cohere2", "pattern", num_hidden_layers=5, sliding_window=5, logit_scale=0.3),
    case(
        "cohere2",
        "layer-types-biased-untied",
        sliding_window=5,
        layer_types=[FULL, SLIDING, SLIDING],
        attention_bias=True,
        tie_word_embeddings=False,
    ),
]
OLMO = [
    case("olmo", "plain", num_key_value_heads=None),
    case("olmo", "clipped-biased-tied", clip_qkv=0.5, attention_bias=True, tie_word_embeddings=True),
]
OLMO2 = [case("olmo2", "plain"), case("olmo2", "biased-tied", attention_bias=True, tie_word_embeddings=True)]
MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.7,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
GRANITE = [
    case("granite", "multiplied", **MULTIPLIERS),
    case("granite", "plain-biased-tied", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
]
STARCODER2 = [
    case("starcoder2", "window", sliding_window=5),
    case("starcoder2", "unbiased-untied", use_bias=False, tie_word_embeddings=False),
]
STABLELM = [
    case("stablelm", "plain", partial_rotary_factor=0.5),
    case(
        "stablelm",
        "parallel-biased-qk-norms",
        partial_rotary_factor=0.75,
        use_parallel_residual=True,
        use_qkv_bias=True,
        qk_layernorm=True,
        tie_word_embeddings=True,
    ),
]
SMOLLM3 = [
    case("smollm3", "interval", num_hidden_layers=5),
    case(
        "smollm3",
        "no-rope-layers-slide",
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    case(
        "smollm3",
        "layer-types",
        no_rope_layers=[1, 0, 1],
        use_sliding_window=True,
        sliding_window=5,
        layer_types=[SLIDING, FULL, FULL],
    ),
]
CASES = [
    *(*MISTRAL, *QWEN2, *QWEN3, *GEMMA, *GEMMA2, *GEMMA3, *PHI, *PHI3),
    *(*COHERE, *COHERE2, *OLMO, *OLMO2, *GRANITE, *STARCODER2, *STABLELM, *SMOLLM3),
]
