"""GGUF architectures with an encoder and a decoder: T5 and its kin, which share a name and differ by their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydel.weights.gguf_architecture import Architecture
from easydel.weights.gguf_metadata import Metadata

GATE, SECOND_TABLE = "enc.blk.0.ffn_gate.weight", "enc.blk.1.attn_rel_b.weight"
_KEYS = {
    "block_count": "num_layers",
    "decoder_block_count": "num_decoder_layers",
    "embedding_length": "d_model",
    "feed_forward_length": "d_ff",
    "attention.head_count": "num_heads",
    "attention.key_length": "d_kv",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    "attention.relative_buckets_count": "relative_attention_num_buckets",
    "decoder_start_token_id": "decoder_start_token_id",
}
_IGNORED = ("context_length", "attention.layer_norm_epsilon")  # biases go by distance; the other epsilon counts


def _modules(*feed_forward: str) -> tuple[str, ...]:
    inner = tuple(f"DenseReluDense.{name}" for name in (*feed_forward, "wo"))
    attention = ("q", "k", "v", "o", "relative_attention_bias")
    own = ("layer.0.layer_norm", *(f"layer.0.SelfAttention.{name}" for name in attention))
    cross = ("layer.1.layer_norm", *(f"layer.1.EncDecAttention.{name}" for name in attention))
    towers = {
        "encoder": (*own, "layer.1.layer_norm", *(f"layer.1.{name}" for name in inner)),
        "decoder": (*own, *cross, "layer.2.layer_norm", *(f"layer.2.{name}" for name in inner)),
    }
    of_layer = (f"{tower}.block.{{}}.{name}" for tower, names in towers.items() for name in names)
    return ("shared", "lm_head", "encoder.final_layer_norm", "decoder.final_layer_norm", *of_layer)


def _kind(model_type: str, name: str, modules: tuple[str, ...]) -> Architecture:
    constants = {"is_encoder_decoder": True, "architectures": [f"{name}ForConditionalGeneration"]}
    return Architecture(model_type, modules, _KEYS, constants, ignored=_IGNORED, rotary=None)


TOWERS: dict[str, Architecture] = {
    "t5": _kind("t5", "T5", _modules("wi")),
    "t5 with gates": _kind("t5", "T5", _modules("wi_0", "wi_1")),
    "t5 with tables": _kind("umt5", "UMT5", _modules("wi_0", "wi_1")),
}


def t5(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what llama.cpp computes: GELU where there are gates, else ReLU."""
    return {"feed_forward_proj": "gated-gelu" if GATE in metadata.tensors else "relu"}
