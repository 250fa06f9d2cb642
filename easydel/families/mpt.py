"""MPT (MosaicML 2023, github.com/mosaicml/llm-foundry): ALiBi, no biases, not even in norms."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import UnsupportedModelError
from easydel.families import family, gpt2
from easydel.layers.block import Block
from easydel.layers.mlp import MLP
from easydel.layers.norm import LayerNorm
from easydel.layers.position import ALiBi
from easydel.weights.names import QKV, Fused, Names

RENAMES = {
    r"model\.embed_tokens": "transformer.wte",
    r"model\.layers": "transformer.blocks",
    r"model\.norm": "transformer.norm_f",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "self_attn": "attn",
    "o_proj": "out_proj",
    "mlp": "ffn",
}
NAMES = Names(RENAMES, (Fused("self_attn.Wqkv", QKV),), prefix="transformer")
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
}
DEFAULTS = {"vocab_size": 50368, "d_model": 2048, "n_heads": 16, "n_layers": 24, "max_seq_len": 2048} | {
    "expansion_ratio": 4,
    "layer_norm_epsilon": 1e-5,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "embedding_fraction": 1.0,
    "attn_config": {},
    "tie_word_embeddings": True,
}
# What there is no code for, in transformers neither: it computes as if these were the values.
ONLY = {
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "logit_scale": (None,),
    "embedding_fraction": (1,),
}
ATTENTION_ONLY = {"attn_type": ("multihead_attention",), "alibi": (True,)} | dict.fromkeys(
    ("attn_uses_sequence_id", "prefix_lm", "qk_ln"), (False,)
)
# What computes attention; positions that are learned only without ALiBi; how training was started.
INERT = ("attn_config.attn_impl", "learned_pos_emb", "tokenizer_name", "verbose")


def refuse_variants(c: HFConfig) -> None:
    asked = [
        f"{key}={settings.get(key)!r}"
        for settings, only in ((c, ONLY), (c.attn_config, ATTENTION_ONLY))
        for key, known in only.items()
        if settings.get(key, known[0]) not in known
    ]
    if asked:
        raise UnsupportedModelError(f"MPT is not implemented with {', '.join(asked)}", file=c.file)


@family("mpt", NAMES, defaults=DEFAULTS, aliases=ALIASES, inert=INERT)
def mpt(c: HFConfig) -> Decoder:
    refuse_variants(c)
    settings, norm = c.attn_config, LayerNorm(c.layer_norm_epsilon, biased=False)
    mixer = gpt2.attention(
        c,
        bias=False,
        out_bias=False,
        position=ALiBi(c.num_attention_heads, settings.get("alibi_bias_max", 8)),
        scale=settings.get("softmax_scale"),
        clip=settings.get("clip_qkv") or None,
    )
    block = Block(mixer, MLP(c.expansion_ratio * c.hidden_size, "gelu", bias=False), attn_in=norm, ffn_in=norm)
    return Decoder.from_hf(c, blocks=[block] * c.num_hidden_layers, final_norm=norm)
