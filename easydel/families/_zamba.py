"""What both Zambas have in common: recurrent layers, some of which ask a transformer that they share."""

from collections.abc import Sequence

from easydel.families._layers import checked_types
from easydel.families._mamba2 import LEGACY, LINEAR
from easydel.families._parts import Block, Decoder, HFConfig, Names, Part, RMSNorm
from easydel.layers.global_block import GlobalBlock, Informed

HYBRID = "hybrid"
SHARED = "shared_"  # and the number of the block
ROWS = {
    "model.norm": "model.final_layernorm",
    "mixer": "mamba",
    "informed.mixer": "mamba_decoder.mamba",
    "informed.input_layernorm": "mamba_decoder.input_layernorm",
    "informed.linear": "linear",
    "post_attention_layernorm": "pre_ff_layernorm",
    "mlp": "feed_forward",
}


def kinds(c: HFConfig, default: Sequence[str]) -> Sequence[str]:
    """The kind of each layer, LINEAR or HYBRID."""
    stated = [LEGACY.get(kind, kind) for kind in c.get("layers_block_type") or default]
    return checked_types(c, "layers_block_type", stated, (LINEAR, HYBRID))


def users(found: Sequence[str], blocks: int) -> dict[int, list[int]]:
    """Which of the layers that ask a block ask each one: they take turns."""
    asking = list(found).count(HYBRID)
    return {block: list(range(block, asking, blocks)) for block in range(min(blocks, asking))}


def names(found: Sequence[str], blocks: int, theirs: str, table: Names) -> Names:
    """`table`, with the shared blocks where files have them: in the first layer that asks each."""
    asking = [layer for layer, kind in enumerate(found) if kind == HYBRID]
    rows = {f"model.{SHARED}{block}": f"model.layers.{asking[block]}.{theirs}" for block in users(found, blocks)}
    return table.extended(rows)


def decoder(c: HFConfig, found: Sequence[str], mixer: Part, shared: Sequence[GlobalBlock]) -> Decoder:
    c.only("tie_word_embeddings", True)  # untied, transformers does not share the blocks either
    norm, made, asked = RMSNorm(c.rms_norm_eps), [], 0
    for kind in found:
        if kind == HYBRID:
            block = asked % len(shared)
            part = Informed(mixer, shared[block], norm, f"{SHARED}{block}", asked)
            made.append(Block(part, None))
            asked += 1
        else:
            made.append(Block(mixer, None, attn_in=norm))
    return Decoder.from_hf(c, blocks=made, final_norm=norm)
