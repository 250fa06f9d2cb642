"""Japanese GPT-NeoX (ABEJA 2022): no biases, except behind the last layer's attention."""

from dataclasses import replace

from easydel.families import llama
from easydel.families._parts import MLP, Block, Decoder, HFConfig, LayerNorm, Names, family
from easydel.families.gpt_neox import names as gpt_neox_names


def names(c: HFConfig) -> Names:
    table = gpt_neox_names(c).extended({r"self_attn\.o_proj\.bias": "attention.dense_bias"})
    own = {ours: theirs.replace("gpt_neox.", "gpt_neox_japanese.") for ours, theirs in table.renames.items()}
    return replace(table, renames=own, prefix="gpt_neox_japanese")


@family(
    "gpt_neox_japanese",
    names,
    aliases={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    inert={"is_decoder": "it is one in any case"},
)
def gpt_neox_japanese(c: HFConfig) -> Decoder:
    norm, ffn = LayerNorm(c.layer_norm_eps), MLP(c.hidden_size * c.intermediate_multiple_size, c.hidden_act, bias=False)
    mixers = [llama.attention(c) for _ in range(c.num_hidden_layers - 1)] + [llama.attention(c, biased="o")]
    blocks = [Block(mixer, ffn, attn_in=norm, ffn_in=norm) for mixer in mixers]
    return Decoder.from_hf(c, blocks=blocks, final_norm=norm)
