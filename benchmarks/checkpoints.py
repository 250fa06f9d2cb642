"""Random Llamas for benchmarks/load.py, in shards whose data starts wherever their header ends, as on the Hub.

In bfloat16, in 4 bits (compressed-tensors, groups of 64) and in float8 (DeepSeek-V3's blocks).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SIZES = {  # vocabulary, features, hidden, layers, heads, kv heads
    "1.1b": (32000, 2048, 5632, 22, 32, 4),
    "135m": (49152, 576, 1536, 30, 12, 4),
}
SHARDS = 5
GROUP, BLOCK = 64, 128
BFLOAT16, FLOAT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
Writer = Callable[[np.random.Generator, str, tuple[int, ...]], dict[str, np.ndarray]]


def shapes_of(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    vocab, features, hidden, layers, heads, kv_heads = SIZES[size]
    narrow = features // heads * kv_heads
    yield "model.embed_tokens", (vocab, features)
    yield "model.norm", (features,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}self_attn.q_proj", (features, features)
        yield f"{prefix}self_attn.k_proj", (narrow, features)
        yield f"{prefix}self_attn.v_proj", (narrow, features)
        yield f"{prefix}self_attn.o_proj", (features, features)
        yield f"{prefix}mlp.gate_proj", (hidden, features)
        yield f"{prefix}mlp.up_proj", (hidden, features)
        yield f"{prefix}mlp.down_proj", (features, hidden)
        yield f"{prefix}input_layernorm", (features,)
        yield f"{prefix}post_attention_layernorm", (features,)
    yield "lm_head", (vocab, features)


def plain(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {f"{name}.weight": (random.standard_normal(shape, np.float32) * 0.02).astype(BFLOAT16)}


def in_4_bits(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if not name.endswith("_proj"):
        return plain(random, name, shape)
    rows, columns = shape
    return {
        f"{name}.weight_packed": random.integers(-(2**31), 2**31, (rows, columns // 8), np.int32),
        f"{name}.weight_scale": random.uniform(0.002, 0.005, (rows, columns // GROUP)).astype(BFLOAT16),
        f"{name}.weight_shape": np.array(shape, np.int64),
    }


def in_float8(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if not name.endswith("_proj"):
        return plain(random, name, shape)
    rows, columns = shape
    codes = random.integers(0, 0x7F, shape, np.uint8) | random.integers(0, 2, shape, np.uint8) << 7  # 0x7f is NaN
    scales = random.uniform(0.0001, 0.0002, (-(-rows // BLOCK), -(-columns // BLOCK)))
    return {f"{name}.weight": codes.view(FLOAT8), f"{name}.weight_scale_inv": scales.astype(np.float32)}


KINDS: dict[str, tuple[Writer, dict[str, Any]]] = {
    "hub": (plain, {}),
    "4 bits": (
        in_4_bits,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": GROUP,
                    },
                }
            },
        },
    ),
    "float8": (
        in_float8,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
    ),
}


def make_checkpoint(directory: Path, size: str, kind: str) -> None:
    from safetensors.numpy import save_file

    write, settings = KINDS[kind]
    random, weight_map = np.random.default_rng(0), {}
    names = list(shapes_of(size))
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        own: dict[str, np.ndarray] = {}
        for name, shape in names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]:
            own |= write(random, name, shape)
        weight_map |= dict.fromkeys(own, file)
        save_file(own, directory / file, metadata={"format": "pt", "n": "x" * shard})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    vocab, features, hidden, layers, heads, kv_heads = SIZES[size]
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": features,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    if settings:
        config["quantization_config"] = settings
    (directory / "config.json").write_text(json.dumps(config))
