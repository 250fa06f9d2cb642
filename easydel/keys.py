"""transformers' knowledge of each model type's config keys, and keys that matter even if their type lacks them.

`families/keys.json` is generated from transformers (`make keys`); nothing here needs transformers itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "families" / "keys.json"

# Reasons why keys do not affect a forward pass, or a training step without dropout, whichever class declares them.
INERT = {
    "what n_positions and rotary_dim say": r"n_ctx|rotary",
    "how the file came to be": r"transformers.*|architectures|model_type|auto_map|_?name_or_path"
    r"|_commit_hash|(torch_)?dtype|torchscript|tf_legacy_loss|use_bfloat16|unsloth.*|vocab_file|tokenizer_class",
    "which kernels compute it": r"_?(attn|experts)_implementation.*|(use_)?flash_attn.*|use_mambapy"
    r"|use_associative_scan|use_mamba_kernels",
    "how much memory that takes": r"use_cache|cache_implementation|gradient_checkpointing|chunk_size_feed_forward"
    r"|num_logits_to_keep",
    "how it is split or rounded": r"pretraining_tp|tp_parallel|ep_size|slow_but_exact|skip_bias_add.*|pruned_heads",
    "what is returned besides": r"output_(attentions|hidden_states|router_logits|scores|past)|return_dict"
    r"|keys_to_ignore_at_inference",
    "dropout": r".*dropout(_p|_prob|_rate)?|.*_drop|.*pdrop|drop_path.*|.*layerdrop",
    "how training begins": r"initializer.*|.*init_std|init_(std|method|config|device|scale)|.*initializer_range"
    r"|rescale_prenorm_residual|time_step_(init_scheme|scale|min|max|floor)",
    "losses and noise of routers": r"router_(aux|z)_loss.*|router_jitter_noise|input_jitter_noise|aux_loss_.*|seq_aux",
    "heads that classify": r"id2label|label2id|num_labels|problem_type|task_specific_params|finetuning_task|summary_.*"
    r"|classifier_.*",
    "for tokenizers and `generate`": r".*_token_(id|index)|pad_idx|model_max_length|prefix",
    "for sound, beside text": r"audio_encoder_config|depth_decoder_config|audio_vocab_size|num_codebooks",
    "read before a family is chosen": r"is_encoder_decoder",
    "images, beside a language model": r"vision_config",
}
# Defaults of `generate` that files once had in config.json; in a class that declares one it means something else.
GENERATION = re.compile(
    r"(max|min)_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_k|top_p"
    r"|typical_p|(encoder_)?repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|forced_.*"
    r"|num_return_sequences|return_dict_in_generate|remove_invalid_values|exponential_decay_length_penalty"
    r"|(begin_)?suppress_tokens"
)
# The meaning of keys that mean the same in every model: refused where a model type's class does not know them.
EFFECTS = {
    "rotary positions": r"rope_(parameters|scaling|theta|local_base_freq)|rotary_(dim|emb_base)|partial_rotary_factor",
    "positions by distance": r"alibi",
    "the tokens that a layer sees": r"(use_)?sliding_window|sliding_window_pattern|window_size|attention_chunk_size"
    r"|use_bidirectional_attention|add_cross_attention",
    "layers of several kinds": r"layer_types|no_rope_layers|num_kv_shared_layers|per_layer_config",
    "biases": r"(attention|mlp|qkv|use|use_qkv|lm_head|attention_out)_bias",
    "norms of queries and keys": r"(use_)?qk_(layer)?norm|qk_ln",
    "limits": r"clip_qkv|.*soft_?cap(ping)?|swiglu_limit",
    "factors": r".*_multiplier|logits_scaling|logit_scale|scale_(emb|depth)|embedding_scale|routed_scaling_factor",
    "scales of queries or embeddings": r"query_pre_attn_scalar|scale_attn_by_inverse_layer_idx|scale_embedding"
    r"|dim_model_base",
    "experts": r"n_routed_experts|n_shared_experts|num_shared_experts?|num_local_experts"
    r"|shared_expert_intermediate_size",
    "the places of residuals and norms": r"use_parallel_residual|parallel_attn|do_layer_norm_before"
    r"|apply_residual_connection_post_layernorm",
}
OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
FULL = "full_attention"


@dataclass(frozen=True)
class Keys:
    """The declarations of transformers' config class of one model type.

    `defaults` are the values of keys that a config lacks, `aliases` other spellings (its `attribute_map`: spelling ->
    key). `rope` are the rotary settings of a config without any, `rope_rest` complete a config that states some; both
    are by kind of layer if the class has them so. `nested` names the types of configs inside of this one, `causal_lm`
    the class that loads it.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    rope: Mapping[str, Any] = field(default_factory=dict)
    rope_rest: Mapping[str, Any] = field(default_factory=dict)
    nested: Mapping[str, str] = field(default_factory=dict)
    causal_lm: str | None = None

    @classmethod
    def of(cls, model_type: object) -> Keys:
        """Returns the keys of `model_type`; none for a type that transformers does not know."""
        return cls(**_file().get(str(model_type), {}))

    def inside(self, key: str) -> Keys:
        """Returns the keys of the config at `key`."""
        return Keys.of(self.nested.get(key))

    def spellings(self, key: str) -> list[str]:
        """Returns the names that `key` may have in a file, in the order of precedence; its own name is last."""
        own = self.aliases.get(key, key)
        return [*(other for other, name in self.aliases.items() if name == own), own]

    def refusal(self, key: str, value: Any) -> str | None:
        """Returns the reason why a model that did not read `key` cannot honour `value`; None without a known effect."""
        own = self.aliases.get(key, key)
        if value is None or is_inert(key) or is_inert(own):
            return None
        if own in self.defaults:
            default = self.defaults[own]
            return None if value == default else f"only {default!r} is implemented"
        return None if _is_off(key, value) else effect(key)

    def unknown(self, key: str, value: Any) -> bool:
        """True if `key` is set and neither declared here nor known to be inert."""
        own = self.aliases.get(key, key)
        inert = is_inert(key) or is_inert(own) or GENERATION.fullmatch(key) is not None
        private = key.startswith("_")  # an attribute of transformers' own, which files have by accident
        return own not in self.defaults and not inert and not private and not _is_off(key, value)


def causal_types() -> list[str]:
    """Returns the model types that transformers counts among causal language models."""
    return sorted(name for name, row in _file().items() if "causal_lm" in row)


@cache
def is_inert(key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in INERT.values())


@cache
def effect(key: str) -> str | None:
    """Returns the meaning of `key` in every model that has it."""
    return next((meaning for meaning, pattern in EFFECTS.items() if re.fullmatch(pattern, key)), None)


def _is_off(key: str, value: Any) -> bool:
    """True if the value switches the feature off or has no effect. 1 has none as a factor, but is a real limit."""
    if value in OFF and value is not True:
        return True
    if effect(key) == "factors":
        return value == 1
    return key == "layer_types" and isinstance(value, list) and set(map(str, value)) == {FULL}


@cache
def _file() -> Mapping[str, Any]:
    return json.loads(FILE.read_text())
