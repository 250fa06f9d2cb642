"""Dense decoders of 2024 and later, each with a mode of its own."""

from __future__ import annotations

from cases.dense import FULL, SLIDING, case

YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OLMO3 = [
    case(
        "olmo3",
        "two-ropes",
        num_hidden_layers=5,
        sliding_window=5,
        rope_parameters={
            FULL: YARN | {"attention_factor": 1.3},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
        attention_bias=True,
        tie_word_embeddings=True,
    )
]
MINISTRAL3 = [
    case(
        "ministral3",
        "growing-scale-window",
        head_dim=10,
        sliding_window=7,
        rope_parameters=YARN
        | {"original_max_position_embeddings": 4, "mscale": 0.7, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.6},
    )
]
GLM4 = [
    case(
        "glm4",
        "partial-scaled",
        head_dim=12,
        rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    )
]
GLM = [case("glm", "partial-unbiased-tied", head_dim=8, attention_bias=False, tie_word_embeddings=True)]
EXAONE4 = [
    case("exaone4", "window", num_hidden_layers=5, sliding_window=5, tie_word_embeddings=True),
    case("exaone4", "no-window", sliding_window=None, layer_types=[FULL] * 3),
]
SEED_OSS = [case("seed_oss", "biased", head_dim=10, attention_out_bias=True, mlp_bias=True)]
ERNIE = [case("ernie4_5", "biased-untied", head_dim=10, use_bias=True, tie_word_embeddings=False)]
HUNYUAN = [
    case(
        "hunyuan_v1_dense",
        "alpha-biased-tied",
        head_dim=10,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 50.0, "factor": 1.0, "alpha": 7.0},
        attention_bias=True,
        tie_word_embeddings=True,
    )
]
NEMOTRON = [
    case(
        "nemotron",
        "partial-biased",
        head_dim=10,
        partial_rotary_factor=0.4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    )
]
APERTUS = [
    case("apertus", "xielu-biased", head_dim=10, attention_bias=True, rope_parameters=LLAMA3),
    case("apertus", "relu2-tied", hidden_act="relu2", tie_word_embeddings=True),
]
MINISTRAL = [case("ministral", "layer-types", head_dim=10, sliding_window=5, layer_types=[SLIDING, FULL, SLIDING])]
CASES = [*OLMO3, *MINISTRAL3, *GLM, *GLM4, *EXAONE4, *SEED_OSS, *ERNIE, *HUNYUAN, *NEMOTRON, *APERTUS, *MINISTRAL]
