"""Configs in the forms they had over the years, and settings that are refused because there is no code for them."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import transformers
from cases import FULL, SLIDING

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ArgumentError, ConfigError, UnsupportedModelError
from easydel.families import find_family
from easydel.layers.attention import Attention
from easydel.layers.rope import Rope

SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 4, "max_position_embeddings": 64}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
SCALINGS = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 20.0, "mscale": 0.7},
    "llama3": LLAMA3,
    "longrope": {**LONGROPE, "original_max_position_embeddings": 16},
}
EVERY_SCALING = pytest.mark.parametrize(("kind", "settings"), SCALINGS.items(), ids=SCALINGS)
EITHER_SPELLING = pytest.mark.parametrize("spelling", ["type", "rope_type"])


def record(model_type: str, /, **config: Any) -> Decoder:
    family = find_family(model_type)
    return family.record(family.configured(HFConfig(SIZES | config)))[0]


def overridden(model_type: str, config: dict[str, Any], /, **overrides: Any) -> Decoder:
    family = find_family(model_type)
    return family.record(family.configured(HFConfig(SIZES | config), overrides))[0]


def ropes(decoder: Decoder) -> list[Rope]:
    positions = [block.mixer.position for block in decoder.blocks if isinstance(block.mixer, Attention)]
    assert all(isinstance(position, Rope) for position in positions)
    return [position for position in positions if isinstance(position, Rope)]


def by_transformers(model_type: str, /, **config: Any) -> Decoder:
    """The record for the config that transformers writes after reading this one."""
    config_class: Any = transformers.CONFIG_MAPPING[model_type]
    return record(model_type, **json.loads(config_class(**SIZES | config).to_json_string(use_diff=False)))


@EVERY_SCALING
@EITHER_SPELLING
@pytest.mark.parametrize("partial", [None, 0.5])
def test_llama_rope_is_the_same_in_both_forms(
    kind: str, settings: dict[str, Any], spelling: str, partial: float | None
):
    if partial and kind == "longrope":
        settings = settings | {name: values[:2] for name, values in LONGROPE.items()}
    old = {"rope_theta": 500.0, "rope_scaling": {spelling: kind, **settings}}
    new = {"rope_type": kind, "rope_theta": 500.0, **settings}
    if partial:
        old["partial_rotary_factor"] = new["partial_rotary_factor"] = partial
    made = record("llama", **old)
    assert ropes(made) == ropes(record("llama", rope_parameters=new)) == ropes(by_transformers("llama", **old))
    assert {(rope.theta, rope.dim, rope.scaling is None) for rope in ropes(made)} == {
        (500.0, 4 if partial else 8, kind == "default")
    }


@EVERY_SCALING
@EITHER_SPELLING
def test_gemma3_ropes_are_the_same_in_both_forms(kind: str, settings: dict[str, Any], spelling: str):
    old = {"rope_theta": 5000.0, "rope_local_base_freq": 50.0, "rope_scaling": {spelling: kind, **settings}}
    new = {
        FULL: {"rope_type": kind, "rope_theta": 5000.0, **settings},
        SLIDING: {"rope_type": "default", "rope_theta": 50.0},
    }
    sizes = {"head_dim": 8, "sliding_window": 5}
    made = record("gemma3_text", **sizes, **old, sliding_window_pattern=2)
    assert made == record("gemma3_text", **sizes, rope_parameters=new, layer_types=[SLIDING, FULL] * 2)
    if spelling == "rope_type":  # of "type" transformers makes a default rope here
        assert made == by_transformers("gemma3_text", **sizes, **old, sliding_window_pattern=2)
    assert [(rope.theta, rope.scaling is None) for rope in ropes(made)] == [
        (50.0, True),
        (5000.0, kind == "default"),
    ] * 2


def test_gemma3_ropes_have_defaults_of_their_own():
    kinds = {"head_dim": 8, "layer_types": [SLIDING, FULL] * 2}
    assert [rope.theta for rope in ropes(record("gemma3_text", **kinds))] == [10000.0, 1000000.0] * 2
    nested = {FULL: {"rope_type": "linear", "factor": 2.0}}
    made = record("gemma3_text", **kinds, rope_parameters=nested)
    assert made == by_transformers("gemma3_text", **kinds, rope_parameters=nested)


@pytest.mark.parametrize("kind", ["longrope", "su"])
@EITHER_SPELLING
def test_phi3_rope_is_the_same_in_both_forms(kind: str, spelling: str):
    old = {"rope_theta": 500.0, "rope_scaling": {spelling: kind, **LONGROPE}, "original_max_position_embeddings": 16}
    new = {"rope_type": "longrope", "rope_theta": 500.0, "original_max_position_embeddings": 16, **LONGROPE}
    made = record("phi3", **old)
    assert made == record("phi3", rope_parameters=new, original_max_position_embeddings=16)
    if kind == "longrope":  # transformers no longer takes "su"
        assert made == by_transformers("phi3", **old)
    assert {rope.scaling is None for rope in ropes(made)} == {False}
    assert ropes(made)[0].gain == pytest.approx((1 + 1 / 2) ** 0.5)  # log(64 / 16) / log(16)


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("model_type", "overrides", "expected"),
    [
        ("llama", {"rope_theta": 17.0}, (17.0, 4)),
        ("llama", {"partial_rotary_factor": 1.0}, (500.0, 8)),
        ("llama", {"rope_theta": 17.0, "partial_rotary_factor": 0.25}, (17.0, 2)),
        ("gpt_neox", {"rotary_emb_base": 17.0, "rotary_pct": 1.0}, (17.0, 8)),
        ("llama", {"rope_theta": None}, (500.0, 4)),
        ("llama", {"rope_theta": 17.0, "rope_scaling": None, "rope_parameters": None}, (17.0, 8)),
        (
            "llama",
            {"rope_theta": 17.0, "rope_scaling": None, "rope_parameters": {"rope_theta": None, "type": "default"}},
            (17.0, 8),
        ),
        ("llama", {"rope_theta": 17.0, "rope_scaling": None, "rope_parameters": {"rope_theta": 17}}, (17.0, 8)),
    ],
    ids=str,
)
def test_an_override_comes_before_the_rotary_settings_of_the_file(
    form: str, model_type: str, overrides: dict[str, Any], expected: tuple[float, int]
):
    settings = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    made = overridden(model_type, {form: settings}, **overrides)
    assert {(rope.theta, rope.dim) for rope in ropes(made)} == {expected}
    assert ropes(overridden(model_type, {form: settings, "rope_theta": 30.0}))[0].theta == 500.0, "as in transformers"


@pytest.mark.parametrize(
    ("model_type", "rope", "overrides", "problem"),
    [
        ("llama", {}, {"rope_theta": 17.0, "rope_parameters": {"rope_theta": 18.0}}, "rope_theta=17.0"),
        ("gemma3_text", {FULL: {"rope_theta": 5.0}, SLIDING: {}}, {"rope_theta": 17.0}, "rope_theta=17.0"),
        ("gemma3_text", {FULL: {}, SLIDING: {"rope_theta": 5.0}}, {"rope_local_base_freq": 17.0}, "rope_local_base"),
    ],
    ids=str,
)
def test_an_override_that_rope_parameters_would_hide_is_refused(
    model_type: str, rope: dict[str, Any], overrides: dict[str, Any], problem: str
):
    with pytest.raises(ArgumentError, match=rf"{problem}.*; pass rope_parameters="):
        overridden(model_type, {"rope_parameters": rope}, **overrides)


@pytest.mark.parametrize(
    ("model_type", "asked", "why"),
    [
        ("mistral", {"layer_types": [FULL, SLIDING]}, "layers of several kinds"),
        ("llama", {"sliding_window": 5}, "the tokens that a layer sees"),
        ("mistral", {"attention_bias": True, "mlp_bias": True}, "biases"),
        ("qwen2", {"clip_qkv": 3.0}, "limits"),
        ("phi3", {"attention_multiplier": 0.5}, "factors"),
        ("qwen3", {"n_shared_experts": 1}, "experts"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "only None is implemented"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "only False is implemented"),
        ("olmo2", {"no_rope_layers": [1, 0], "logit_scale": 0.5}, "factors"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_keys_that_change_the_computation_and_are_not_read_are_refused_by_name(
    model_type: str, asked: dict[str, Any], why: str
):
    with pytest.raises(UnsupportedModelError) as refusal:
        record(model_type, **asked)
    assert why in refusal.value.problem
    for key, value in asked.items():
        assert f"{key}={value!r}" in refusal.value.problem


def test_keys_of_others_that_are_off_are_accepted():
    off = {"sliding_window": None, "clip_qkv": None, "no_rope_layers": [], "logit_scale": 1.0, "use_qk_norm": False}
    off |= {"layer_types": [FULL] * 4}  # what transformers writes
    assert record("llama", **off) == record("llama")


@pytest.mark.parametrize("asked", [{"final_logit_softcapping": 1.0}, {"sliding_window": 1}, {"clip_qkv": 1}], ids=str)
def test_a_limit_of_one_is_not_off(asked: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match=next(iter(asked))):
        record("llama", **asked)


def test_keys_without_a_known_effect_are_one_log_line(caplog: pytest.LogCaptureFixture):
    rope = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.9, "finetuned": True}
    made = record("llama", flux_capacitance=1.21, warp_factor=9, is_decoder=True, rope_scaling=rope)
    assert made == record("llama", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    told = "flux_capacitance, is_decoder, rope_scaling.attn_factor, rope_scaling.finetuned, warp_factor"
    assert [told in line for line in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rope_type": "spiral"}, "'spiral' is not known"),
        ({"rope_type": "linear", "factor": 2.0, "alpha": 3.0}, "does not take alpha"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "needs 4 factors"),
        ({"rope_type": "default", "partial_rotary_factor": 0.4}, "not 3 of a head's 8"),
    ],
)
def test_ropes_that_would_not_be_honoured_are_refused(settings: dict[str, Any], problem: str):
    with pytest.raises(UnsupportedModelError, match=problem):
        record("llama", rope_parameters=settings)


@pytest.mark.parametrize(
    ("model_type", "broken"),
    [
        ("llama", {"rope_scaling": {"type": "linear"}}),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": "eight"}}),
        ("llama", {"rope_theta": "far"}),
        ("llama", {"num_attention_heads": 0}),
        ("llama", {"hidden_size": "wide"}),
        ("qwen2", {"layer_types": [FULL]}),
        ("smollm3", {"no_rope_layers": [1]}),
        ("smollm3", {"no_rope_layer_interval": 0}),
        ("gemma3_text", {"rope_parameters": [1, 2]}),
        ("cohere2", {"sliding_window_pattern": "often"}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_broken_values_are_config_errors(model_type: str, broken: dict[str, Any]):
    with pytest.raises(ConfigError):
        record(model_type, **broken)


def test_unknown_layer_types_are_refused():
    with pytest.raises(UnsupportedModelError, match="chunked_attention"):
        record("qwen3", layer_types=[FULL, "chunked_attention"] * 2)


# As these files are on the Hub, or were before 2025, without what every config has.
HUB = {
    "gemma": {"hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None, "rope_theta": 10000.0},
    "gemma2": {
        "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 224,
        "sliding_window_size": 4096,
    },
    "qwen2": {"max_window_layers": 28, "sliding_window": 131072, "use_mrope": False, "use_sliding_window": False},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": False, "rope_scaling": None, "rope_theta": 10000.0},
    "phi3": {
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", **LONGROPE},
        "sliding_window": 262144,
    },
    "starcoder2": {"activation_function": "gelu", "mlp_type": "default", "norm_type": "layer_norm", "use_bias": True},
    "cohere": {"logit_scale": 0.0625, "model_max_length": 131072, "pretraining_tp": 1, "rope_theta": 8000000.0},
    "cohere2": {
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "sliding_window_pattern": 4,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
    },
    "olmo3": {
        "layer_types": [SLIDING] * 3 + [FULL],
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "sliding_window": 4096,
    },
    "ministral3": {
        "head_dim": 8,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
    },
    "exaone4": {
        "layer_types": [SLIDING] * 3 + [FULL],
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "rope_theta": 1000000,
        "sliding_window": 4096,
        "sliding_window_pattern": "LLLG",
    },
    "glm4": {"attention_bias": True, "head_dim": 8, "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    "ernie4_5": {"compression_ratio": 1.0, "head_dim": 8, "rope_theta": 500000.0, "use_bias": False},
    "seed_oss": {"attention_out_bias": False, "residual_dropout": 0.1, "rope_scaling": {"rope_type": "default"}},
    "hunyuan_v1_dense": {
        "attention_head_dim": 8,
        "cla_share_factor": 2,
        "class_num": 0,
        "dense_list": [48, 0],
        "head_dim": 8,
        "norm_type": "rms",
        "num_experts": 1,
        "org_vocab_size": 128167,
        "pool_type": "last",
        "rope_scaling": {
            "alpha": 1000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.0,
            "type": "dynamic",
        },
        "use_cla": False,
        "use_qk_norm": True,
        "use_rotary_pos_emb": True,
    },
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rope_theta": 10000},
    "apertus": {
        "mlp_bias": False,
        "post_norm": False,
        "qk_norm": True,
        "rope_scaling": {"rope_type": "llama3", "type": "llama3", **LLAMA3},
        "rope_theta": 12000000,
    },
    "smollm3": {
        "layer_types": [FULL] * 4,
        "max_window_layers": 28,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "use_sliding_window": False,
    },
}


@pytest.mark.parametrize(("model_type", "config"), HUB.items(), ids=HUB)
def test_official_files_are_read_without_complaint(model_type: str, config: dict[str, Any]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = record(model_type, **config)
    assert made == by_transformers(model_type, **config)
