"""The small Llama that the other modules damage, written byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
GGUF = "model.gguf"
Q = "model.layers.0.self_attn.q_proj.weight"


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (97, 24)}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        found |= {
            f"{stem}.self_attn.{name}_proj.weight": (rows, 24)
            for name, rows in zip("qkvo", (24, 8, 8, 24), strict=True)
        }
        found |= {f"{stem}.mlp.{name}_proj.weight": (40, 24) for name in ("gate", "up")}
        found |= {f"{stem}.mlp.down_proj.weight": (24, 40)}
        found |= {f"{stem}.{name}_layernorm.weight": (24,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (24,), "lm_head.weight": (97, 24)}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes().items()}


def header(names: list[str] | None = None) -> dict[str, Any]:
    """The header of a safetensors file with those tensors, by default all."""
    entries, position = {}, 0
    for name, shape in shapes().items():
        if names is None or name in names:
            end = position + 4 * int(np.prod(shape))
            entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
            position = end
    return entries


def payload(names: list[str] | None = None) -> bytes:
    return b"".join(array.tobytes() for name, array in tensors().items() if names is None or name in names)


def safetensors(entries: Any, data: bytes) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_config(directory: Path, config: Any = None) -> None:
    text = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (directory / "config.json").write_text(text)


def write_safetensors(directory: Path) -> None:
    write_config(directory)
    (directory / WEIGHTS).write_bytes(safetensors(header(), payload()))


def write_sharded(directory: Path) -> dict[str, str]:
    """Two shards and an index instead of the one file; the index's weight_map."""
    (directory / WEIGHTS).unlink(missing_ok=True)
    names = list(shapes())
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, chosen in shards.items():
        (directory / shard).write_bytes(safetensors(header(chosen), payload(chosen)))
    weight_map = {name: shard for shard, chosen in shards.items() for name in chosen}
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_torch(directory: Path, *, zipped: bool = True) -> Path:
    (directory / WEIGHTS).unlink(missing_ok=True)
    state = {name: torch.from_numpy(array) for name, array in tensors().items()}
    torch.save(state, directory / PICKLE, _use_new_zipfile_serialization=zipped)
    return directory / PICKLE


def write_gguf(directory: Path) -> Path:
    for name in (WEIGHTS, "config.json"):
        (directory / name).unlink(missing_ok=True)
    writer = gguf.GGUFWriter(directory / GGUF, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(97)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, array in tensors().items():
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory / GGUF
