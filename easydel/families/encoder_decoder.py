"""Pairs (Rothe et al. 2019, arXiv:1907.12461): BERT or its kin reads; another or GPT-2 writes, and attends to it."""

from dataclasses import replace
from typing import Any

from easydel.expected import shown
from easydel.families import Family, find_family
from easydel.families._parts import (
    Attention,
    Block,
    CrossAttention,
    EncoderDecoder,
    Fused,
    GrowingScale,
    HFConfig,
    Names,
    ShiftRight,
    Tower,
    UnsupportedModelError,
    family,
)
from easydel.families.bert import body, names

# What cross-attention and its norm add to the table of each kind of decoder.
BERT_CROSS: dict[str, Any] = {
    "renames": {
        r"cross_attn\.q_proj": "crossattention.self.query",
        r"cross_attn\.k_proj": "crossattention.self.key",
        r"cross_attn\.v_proj": "crossattention.self.value",
        r"cross_attn\.o_proj": "crossattention.output.dense",
        "cross_output_layernorm": "crossattention.output.LayerNorm",
    }
}
GPT2_CROSS: dict[str, Any] = {
    "renames": {
        "cross_attn": "crossattention",
        r"cross_attn\.q_proj": "crossattention.q_attn",
        "cross_input_layernorm": "ln_cross_attn",
    },
    "fused": (Fused("cross_attn.c_attn", ("cross_attn.k_proj", "cross_attn.v_proj")),),
    "transposed": ("q_attn",),
    "ignored": (r".*\.crossattention\.(masked_)?bias",),
}
OF_PAIRS = ("add_cross_attention", "cross_attention_hidden_size")  # what a language model's config does not have
READERS = ("bert", "bert-generation", "camembert", "roberta", "xlm-roberta")
WRITERS = dict.fromkeys(READERS, BERT_CROSS) | {"gpt2": GPT2_CROSS}


def values(c: HFConfig, key: str) -> dict[str, Any]:
    """Returns a tower's own config, of a known kind; its family checks what is in it."""
    inside, writes = c.inside(key), key == "decoder"
    known = WRITERS if writes else READERS
    inside.mark_read()
    found = {"model_type": "bert", "is_decoder": writes, "add_cross_attention": writes, **dict(inside)}
    if (kind := found["model_type"]) not in known:
        raise UnsupportedModelError(f"the {key} is a {shown(kind)}, known in pairs: {', '.join(known)}", file=c.file)
    wrong = [name for name in ("is_decoder", "add_cross_attention") if found[name] is not writes]
    if wrong:
        raise UnsupportedModelError(f"{' and '.join(wrong)} of the {key}, expected {writes}", file=c.file)
    if (states := found.get("cross_attention_hidden_size")) is not None:
        problem = f"cross_attention_hidden_size={shown(states)} of the {key}, which no known kind reads, expected null"
        raise UnsupportedModelError(problem, file=c.file)
    return {name: value for name, value in found.items() if name not in OF_PAIRS}


def alone(c: HFConfig, key: str) -> tuple[Family, HFConfig]:
    """Returns the family of a tower as a language model, and its config as such a model has it."""
    given = values(c, key)
    found = find_family(given["model_type"])
    own = {name: value for name, value in given.items() if name != "is_decoder" or found.knows(name)}
    return found, found.configured(HFConfig(own, file=c.file))


def attending(block: Block) -> Block:
    """Returns the layer with attention to an encoder, of the same heads and scale and with norms in the same places."""
    assert isinstance(block.mixer, Attention)
    heads, scale = block.mixer.heads, block.mixer.weights.scale
    assert not isinstance(scale, GrowingScale)
    cross = CrossAttention(heads.count, heads.kv, heads.dim, heads.biased, scale)
    return replace(block, cross=cross, cross_in=block.attn_in, cross_out=block.attn_out)


def reader_rows() -> dict[str, str]:
    """Returns the encoder's rows under whole names: the decoder's rows for parts of layers are then none for it."""
    rows = body("encoder")
    inside = {ours: theirs for ours, theirs in rows.items() if not ours.startswith("model")}
    layers = {rf"model\.layers\.\*\.{ours}": f"encoder.encoder.layer.*.{theirs}" for ours, theirs in inside.items()}
    whole = {ours: theirs for ours, theirs in rows.items() if ours not in inside}
    return {ours.replace("model", r"model\.encoder", 1): theirs for ours, theirs in (whole | layers).items()}


def writer_rows(writer: Names) -> dict[str, str]:
    """Returns the decoder's rows: in a pair's files `decoder` stands before the names that begin a path."""
    begin = {ours: theirs for ours, theirs in writer.renames.items() if ours.startswith(("model", "lm_head"))}
    moved = {ours.replace("model", r"model\.decoder", 1): f"decoder.{theirs}" for ours, theirs in begin.items()}
    inside = {ours: theirs for ours, theirs in writer.renames.items() if ours not in begin}
    return {"lm_head": "decoder.lm_head"} | moved | inside


def pair_names(c: HFConfig) -> Names:
    """Returns both towers' tables in one."""
    found, config = alone(c, "decoder")
    reader = names("encoder", "encoder.lm_head", {})(alone(c, "encoder")[1])
    writer = found.names_for(config).extended(**WRITERS[found.model_type])
    copies = {
        f"decoder.{name}": tuple(f"decoder.{other}" for other in others) for name, others in writer.substitutes.items()
    }
    return Names(
        writer_rows(writer) | reader_rows() | {r"model\.project_states": "enc_to_dec_proj"},
        fused=tuple(replace(entry, within="model.decoder") for entry in writer.fused),
        transposed=writer.transposed,
        ignored=(*reader.ignored, *(rf"decoder\.{pattern}" for pattern in writer.ignored)),
        substitutes={**reader.substitutes, **copies},
    )


@family("encoder-decoder", pair_names, encoder_decoder=True)
def encoder_decoder(c: HFConfig) -> EncoderDecoder:
    c.only("tie_encoder_decoder", False)
    c.get("vocab_size")  # each tower has its own
    (reader, _), (writer, _) = (found.record(config) for found, config in (alone(c, "encoder"), alone(c, "decoder")))
    blocks = tuple(map(attending, writer.blocks))
    return EncoderDecoder(
        vocab=writer.vocab,
        features=writer.features,
        encoder=Tower(reader.blocks, reader.embed, reader.final_norm, reader.vocab, reader.features),
        decoder=Tower(blocks, writer.embed, writer.final_norm),
        head=writer.head,
        shift=ShiftRight(c.get("decoder_start_token_id"), c.get("pad_token_id")),
        shared=False,
        projected=reader.features != writer.features,
        max_length=writer.max_length,
    )
