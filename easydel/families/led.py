"""LED (Beltagy et al. 2020, arXiv:2004.05150): BART with an encoder of windows, and of tokens that see everything."""

from easydel.families._parts import (
    ConfigError,
    Embed,
    EncoderDecoder,
    Heads,
    HFConfig,
    Learned,
    Marked,
    Names,
    ShiftRight,
    family,
    one_row,
)
from easydel.families.bart import NORM, RENAMES, reading, whole

ENCODER, DECODER = (f"led.{tower}coder.embed_tokens.weight" for tower in ("en", "de"))
NAMED = {"q": "query", "k": "key", "v": "value"}
LAYERS, SELF = r"model\.encoder\.layers\.\*\.self_attn", "led.encoder.layers.*.self_attn"
NAMES = Names(
    {"model": "led", r"model\.embed_tokens": "led.shared", r"lm_head\.bias": "final_logits_bias"}
    | {rf"{LAYERS}\.{ours}_proj": f"{SELF}.longformer_self_attn.{theirs}" for ours, theirs in NAMED.items()}
    | {rf"{LAYERS}\.marked\.{o}_proj": f"{SELF}.longformer_self_attn.{name}_global" for o, name in NAMED.items()}
    | {rf"{LAYERS}\.o_proj": f"{SELF}.output"}
    | RENAMES,
    ignored=(r"(led\.)?(shared|(en|de)coder\.embed_tokens)\.weight",),  # copies of the tensor that is read
    reshaped={"final_logits_bias": one_row},
    substitutes={"led.shared.weight": (DECODER, ENCODER), ENCODER: ("led.shared.weight",)},
    optional=("final_logits_bias",),
    prefix="led",
)


def radius(c: HFConfig, window: int) -> int:
    if window % 2 or window <= 0:
        raise ConfigError(f"attention_window is {window}, expected an even number", file=c.file)
    return window // 2


@family("led", NAMES, encoder_decoder=True)
def led(c: HFConfig) -> EncoderDecoder:
    count = c.encoder_attention_heads
    heads = Heads(count, count, c.d_model // count, biased="qkvo")
    encoder, decoder = c.max_encoder_position_embeddings, c.max_decoder_position_embeddings
    record = whole(
        c,
        Embed(Learned(encoder), NORM),
        Embed(Learned(decoder), NORM),
        shift=ShiftRight(c.decoder_start_token_id, c.pad_token_id, from_inputs=True),
        max_length=decoder,
    )
    windows = c.by_layer("attention_window", c.encoder_layers)
    return reading(record, [Marked(heads, radius(c, window)) for window in windows])
