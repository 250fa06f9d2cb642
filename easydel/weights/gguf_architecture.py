"""The record of a GGUF architecture, and what the rows of its tables share: keys, modules, changes of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from easydel.weights.gguf_tensors import Change, Join, one_more, rotary

COMMON_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
RMS = {**COMMON_KEYS, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
LAYER_NORM = {**COMMON_KEYS, "attention.layer_norm_epsilon": "layer_norm_eps"}
WINDOW = {"attention.sliding_window": "sliding_window"}
SILU = {"hidden_act": "silu"}
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}


def decoder(*of_layer: str) -> tuple[str, ...]:
    """Returns the modules of a decoder with Llama's names around its layers."""
    layers = tuple(f"model.layers.{{}}.{module}" for module in of_layer)
    return ("model.embed_tokens", "model.norm", "lm_head", *layers)


def experts(prefix: str, *names: str) -> tuple[str, ...]:
    """Returns the modules of a layer's experts, which one tensor holds for each name."""
    return tuple(f"{prefix}.{{}}.{name}" for name in names)


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
GATED = ("gate_proj", "up_proj", "down_proj")
GLU = tuple(f"mlp.{name}" for name in GATED)
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
LLAMA_MODULES = decoder(*NORMS, *ATTENTION, *GLU)

ROTARY: Mapping[str, Change] = {r"attn_[qk]\.(weight|bias)": rotary}
ONE_MORE: Mapping[str, Change] = {r".*norm\.weight": one_more}


@dataclass(frozen=True)
class Architecture:
    """A `general.architecture`, or one kind of its models.

    `modules` are Hugging Face's names, with {} for the layer, and another {} for the expert where one tensor stacks
    them. `exact` maps whole names of tensors, for what has no module of its own. `changes` undo what the converter did
    to the tensors whose names below "blk.N." a pattern matches, `joined` are tensors that it cut in two. `cut` are
    tensors that may hold queries, keys and values together, and the module of each. `numbers` are tensors of one number
    that are in the metadata: keys with a list of one number for each layer, and shapes.
    `keys` of the metadata (after "<name>.") become config keys, `ignored` ones say nothing; `constants` are config keys
    that the name implies, `switches` config keys that say whether the tensor of that name exists. `rotary` is the share
    of each head that may be rotated; a "latent" head has a part of its own for it. `mscale` times YaRN's factor on
    attention is what the file has of it.
    """

    model_type: str
    modules: tuple[str, ...]
    keys: Mapping[str, str] = field(default_factory=lambda: RMS)
    constants: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    exact: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, str, Join]] = field(default_factory=dict)
    cut: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    rotary: Literal["whole", "part", "latent"] | None = "whole"
    mscale: float | None = None
