"""PEGASUS-X (Phang et al. 2022, arXiv:2208.04347): Pegasus whose encoder sees blocks, and global tokens."""

from dataclasses import replace

from easydel.families._parts import (
    ConfigError,
    Embed,
    EncoderDecoder,
    GlobalTokens,
    Head,
    Heads,
    HFConfig,
    OwnBlock,
    Sinusoidal,
    family,
)
from easydel.families.bart import NAMES, NORM, reading, scale, whole

GLOBAL = NAMES.extended(
    {
        r"model\.encoder\.stream\.tokens": "model.encoder.embed_global",
        r"self_attn\.norm": "self_attn_layer_norm",
        r"self_attn\.global_norm": "global_self_attn_layer_norm",
    }
)


@family("pegasus_x", GLOBAL, encoder_decoder=True)
def pegasus_x(c: HFConfig) -> EncoderDecoder:
    count, size, tokens = c.encoder_attention_heads, c.block_size, c.num_global_tokens
    staggered = c.stagger_local_blocks
    if staggered and size % 2:
        raise ConfigError(f"block_size is {size}, expected an even number for staggered blocks", file=c.file)
    heads, embed = Heads(count, count, c.d_model // count), Embed(Sinusoidal(endpoint=True), scale=scale(c))
    record = whole(c, embed, pre_norm=True, biased="", head=Head(c.tie_word_embeddings))
    layers = range(c.encoder_layers)
    record = reading(record, [OwnBlock(heads, size, tokens, NORM, bool(staggered and i % 2)) for i in layers])
    blocks = tuple(replace(block, attn_in=None) for block in record.encoder.blocks)
    return replace(record, encoder=replace(record.encoder, blocks=blocks, stream=GlobalTokens(tokens)))
