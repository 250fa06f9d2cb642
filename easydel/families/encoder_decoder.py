"""Pairs of BERT's kin (Rothe et al. 2019, arXiv:1907.12461): one reads; another writes, and attends to what it read."""

from dataclasses import replace
from typing import Any

from easydel.expected import shown
from easydel.families import find_family
from easydel.families._parts import (
    Attention,
    Block,
    CrossAttention,
    Decoder,
    EncoderDecoder,
    HFConfig,
    Names,
    ShiftRight,
    Tower,
    UnsupportedModelError,
    family,
)
from easydel.families.bert import TRANSFORMED, body, names
from easydel.families.roberta import HEAD

DENSE = {r"lm_head\.dense": "lm_head.dense"}
# The name of a decoder's body, the head with the copy of its token vectors, and what is in that head.
KINDS = {
    "bert": ("bert", "cls.predictions", TRANSFORMED),
    "bert-generation": ("bert", "lm_head", {}),
    **dict.fromkeys(("camembert", "roberta", "xlm-roberta"), ("roberta", "lm_head", HEAD | DENSE)),
}
CROSS = {
    r"cross_attn\.q_proj": "crossattention.self.query",
    r"cross_attn\.k_proj": "crossattention.self.key",
    r"cross_attn\.v_proj": "crossattention.self.value",
    r"cross_attn\.o_proj": "crossattention.output.dense",
    "cross_output_layernorm": "crossattention.output.LayerNorm",
}


def values(c: HFConfig, key: str) -> dict[str, Any]:
    """Returns a tower's own config, which has one of `KINDS`; its family checks what is in it."""
    inside, writes = c.inside(key), key == "decoder"
    inside.mark_read()
    found = {"model_type": "bert", "is_decoder": writes, "add_cross_attention": writes, **dict(inside)}
    if (kind := found["model_type"]) not in KINDS:
        raise UnsupportedModelError(f"the {key} is a {shown(kind)}, known in pairs: {', '.join(KINDS)}", file=c.file)
    wrong = [name for name in ("is_decoder", "add_cross_attention") if found[name] is not writes]
    if wrong:
        raise UnsupportedModelError(f"{' and '.join(wrong)} of the {key}, expected {writes}", file=c.file)
    return {name: value for name, value in found.items() if name != "add_cross_attention"}


def own_config(c: HFConfig, key: str) -> HFConfig:
    """Returns a tower's config as a language model of its kind has it."""
    own = values(c, key)
    return find_family(own["model_type"]).configured(HFConfig(own, file=c.file))


def alone(c: HFConfig, key: str) -> Decoder:
    """Returns a tower as a language model."""
    config = own_config(c, key)
    return find_family(config["model_type"]).record(config)[0]


def attending(block: Block) -> Block:
    """Returns the layer with attention to an encoder, of the same heads and with norms in the same places."""
    assert isinstance(block.mixer, Attention)
    heads = block.mixer.heads
    cross = CrossAttention(heads.count, heads.kv, heads.dim, heads.biased)
    return replace(block, cross=cross, cross_in=block.attn_in, cross_out=block.attn_out)


def pair_names(c: HFConfig) -> Names:
    """Returns both towers' tables in one: their layers have the same names."""
    prefix, head, renames = KINDS[values(c, "decoder")["model_type"]]
    inside = {ours: f"decoder.{theirs}" for ours, theirs in renames.items()}
    reader = names("encoder", "encoder.lm_head", {})(own_config(c, "encoder"))
    writer = names(f"decoder.{prefix}", f"decoder.{head}", inside)(own_config(c, "decoder"))
    rows = {r"model\.encoder": body("encoder"), r"model\.decoder": writer.renames, "": CROSS}
    return Names(
        {ours.replace("model", tower, 1): theirs for tower, own in rows.items() for ours, theirs in own.items()},
        ignored=reader.ignored + writer.ignored,
        substitutes={**reader.substitutes, **writer.substitutes},
    )


@family("encoder-decoder", pair_names, encoder_decoder=True)
def encoder_decoder(c: HFConfig) -> EncoderDecoder:
    c.only("tie_encoder_decoder", False)
    c.get("vocab_size")  # each tower has its own
    reader, writer = alone(c, "encoder"), alone(c, "decoder")
    if reader.features != writer.features:
        problem = f"towers of {reader.features} and {writer.features} features, with a projection between them"
        raise UnsupportedModelError(f"{problem}, are not implemented", file=c.file)
    blocks = tuple(map(attending, writer.blocks))
    return EncoderDecoder(
        vocab=writer.vocab,
        features=writer.features,
        encoder=Tower(reader.blocks, reader.embed, reader.final_norm, reader.vocab),
        decoder=Tower(blocks, writer.embed, writer.final_norm),
        head=writer.head,
        shift=ShiftRight(c.get("decoder_start_token_id"), c.get("pad_token_id")),
        shared=False,
        max_length=writer.max_length,
    )
