"""config.json files that are broken, make no sense, or do not describe the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bad_inputs import Bad
from bad_inputs.valid import CONFIG, write_config

NAN, INF = float("nan"), float("inf")


def text(name: str, raw: str | bytes, *words: str) -> Bad:
    def spoil(directory: Path) -> None:
        (directory / "config.json").write_bytes(raw.encode() if isinstance(raw, str) else raw)

    return Bad(f"config-{name}", spoil, words, "config.json")


def key(name: str, value: Any, *words: str, label: str = "") -> Bad:
    def spoil(directory: Path) -> None:
        write_config(directory, CONFIG | {name: value})

    shown = label or str(value)[:20].replace("/", "_")
    return Bad(f"config-{name}={shown}:{type(value).__name__}", spoil, (name, *words), "config.json")


def keys(label: str, changes: dict[str, Any], *words: str, file: str = "config.json", **arguments: Any) -> Bad:
    def spoil(directory: Path) -> None:
        write_config(directory, {name: value for name, value in (CONFIG | changes).items() if value is not ...})

    return Bad(f"config-{label}", spoil, words, file, arguments=arguments)


def rope(label: str, settings: Any, *words: str) -> Bad:
    return keys(f"rope-{label}", {"rope_scaling": settings}, *words)


SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "intermediate_size", "head_dim")
NO_SIZES: tuple[Any, ...] = (-1, 1.5, "6", True, [], {}, NAN, INF, 1 << 40)
BAD = [
    text("empty", "", "not valid JSON"),
    text("not-json", "{", "not valid JSON"),
    text("list", "[]", "expected an object"),
    text("null", "null", "expected an object"),
    text("number", "5", "expected an object"),
    text("binary", bytes(range(256)), "not valid JSON"),
    text("deep", '{"a":' * 100_000, "not valid JSON"),
    text("html", "<html></html>", "not valid JSON"),
    text("long-number", '{"vocab_size": ' + "9" * 10_000 + "}", "not valid JSON"),
    text("empty-object", "{}", "model_type"),
    *(
        key("model_type", value)
        for value in (5, None, "", [], {}, True, "nothing_like_it", "../llama", "os.path", "a" * 10_000)
    ),
    *(key("architectures", value) for value in (5, "LlamaForCausalLM", [5], {"a": 1})),
    keys(
        "unknown-with-code", {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "never run"
    ),
    keys("trust-remote-code", {}, "never run", file="", trust_remote_code=True),
    keys("unknown-argument", {}, "speed", file="", speed=5),
    *(
        key(name, value)
        for name in SIZES
        for value in NO_SIZES
        if not (name in ("intermediate_size", "head_dim") and value == [])
    ),
    *(key(name, 0) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")),
    *(key(name, None) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")),
    *(key(name, 10**7) for name in (*SIZES, "num_key_value_heads")),
    *(key(name, 10**9) for name in (*SIZES, "num_key_value_heads")),
    *(key("num_key_value_heads", value) for value in (-2, 1.5, "2", True, {}, NAN)),
    *(key("rms_norm_eps", value) for value in ("x", -1.0, NAN, INF, [], {}, True)),
    *(key("hidden_act", value) for value in (5, [], {}, True)),
    key("hidden_act", "explode", "not known"),
    *(key("max_position_embeddings", value) for value in ("x", -1, [], {}, NAN)),
    *(key("rope_theta", value) for value in ("x", -1, 0, [], NAN, INF, {}, True)),
    *(
        key(name, value)
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings")
        for value in (5, "no", [], {})
    ),
    rope("number", 5, "rope_scaling"),
    rope("string", "linear", "rope_scaling"),
    rope("list", [1], "rope_scaling"),
    rope("type-number", {"rope_type": 5}, "rope_type"),
    rope("type-unknown", {"rope_type": "twist"}, "twist"),
    rope("linear-without-factor", {"rope_type": "linear"}, "factor"),
    rope("linear-factor-string", {"rope_type": "linear", "factor": "x"}, "factor"),
    rope("linear-factor-zero", {"rope_type": "linear", "factor": 0}, "factor"),
    rope("linear-factor-nan", {"rope_type": "linear", "factor": NAN}, "factor"),
    rope("llama3-incomplete", {"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
    rope(
        "yarn-length-string", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "x"}, "original"
    ),
    rope("longrope-lists", {"rope_type": "longrope", "short_factor": 5, "long_factor": [1.0]}, "short_factor"),
    rope(
        "longrope-short",
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]},
        "longrope",
    ),
    keys("other-layers", {"num_hidden_layers": 3}, "model.layers.2.mlp.up_proj.weight", "missing", file=""),
    keys("fewer-layers", {"num_hidden_layers": 1}, "model.layers.1.mlp.up_proj.weight", "no place", file=""),
    keys("other-hidden", {"hidden_size": 48}, "model.norm.weight", "[24]", "[48]", file=""),
    keys("other-vocab", {"vocab_size": 98}, "lm_head.weight", "[97, 24]", "[98, 24]", file=""),
    keys("other-heads", {"num_attention_heads": 4}, "q_proj.weight", "[24, 24]", file=""),
    keys("other-family", {"model_type": "gpt2"}, "gpt2", file=""),
    keys("biased", {"attention_bias": True}, "q_proj.bias", "missing", file=""),
    keys("quantized", {"quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
    keys("quantized-number", {"quantization_config": 5}, "quantized"),
    keys("bidirectional", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
]
