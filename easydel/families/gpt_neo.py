"""GPT-Neo (Black et al. 2021, doi:10.5281/zenodo.5297715): GPT-2 with layers that see a window; scores not scaled."""

from easydel.families import gpt2
from easydel.families._parts import ConfigError, Decoder, HFConfig, Names, UnsupportedModelError, family

NAMES = Names(
    gpt2.BODY | {"self_attn": "attn.attention", "o_proj": "out_proj", "up_proj": "c_fc", "down_proj": "c_proj"},
    ignored=(r".*\.attn\.attention\.(masked_)?bias",),
    prefix="transformer",
)


def kinds(c: HFConfig) -> list[str]:
    """Returns the kind of each layer; `attention_types` is [[kinds in turn, number of repetitions], ...]."""
    types = c.get("attention_types", [[["global", "local"], 12]])
    found = c.get("attention_layers", [kind for turn, times in types for kind in turn * times])
    if len(found) != c.num_hidden_layers:
        raise ConfigError(f"attention types for {len(found)} of {c.num_hidden_layers} layers", file=c.file)
    if unknown := sorted(set(found) - {"global", "local"}):
        raise UnsupportedModelError(f"attention types {', '.join(unknown)}, known are global, local", file=c.file)
    return found


@family("gpt_neo", NAMES)
def gpt_neo(c: HFConfig) -> Decoder:
    windows = [c.window_size if kind == "local" else None for kind in kinds(c)]
    mixers = [gpt2.attention(c, biased="o", scale=1.0, window=window) for window in windows]
    return gpt2.pre_norm(c, mixers, c.get("intermediate_size"))
