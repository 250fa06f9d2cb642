"""GPT-Neo (Black et al. 2021, doi:10.5281/zenodo.5297715): GPT-2 with layers that see a window; scores not scaled."""

from __future__ import annotations

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.families import family, gpt2
from easydel.weights.names import Names

NAMES = Names(
    gpt2.BODY | {"self_attn": "attn.attention", "o_proj": "out_proj", "up_proj": "c_fc", "down_proj": "c_proj"},
    ignored=(r".*\.attn\.attention\.(masked_)?bias",),
    prefix="transformer",
)
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
SIZES = {"vocab_size": 50257, "hidden_size": 2048, "max_position_embeddings": 2048, "num_heads": 16, "num_layers": 24}
DEFAULTS = SIZES | {
    "attention_types": [[["global", "local"], 12]],
    "window_size": 256,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def kinds(c: HFConfig) -> list[str]:
    """What each layer sees; `attention_types` is [[kinds in turn, how many times], ...]."""
    found = c.get("attention_layers", [kind for turn, times in c.attention_types for kind in turn * times])
    if len(found) != c.num_hidden_layers:
        raise ConfigError(f"attention types for {len(found)} of {c.num_hidden_layers} layers", file=c.file)
    if unknown := sorted(set(found) - {"global", "local"}):
        raise UnsupportedModelError(f"attention types {', '.join(unknown)}, known are global, local", file=c.file)
    return found


@family("gpt_neo", NAMES, defaults=DEFAULTS, aliases=ALIASES)
def gpt_neo(c: HFConfig) -> Decoder:
    windows = [c.window_size if kind == "local" else None for kind in kinds(c)]
    mixers = [gpt2.attention(c, bias=False, scale=1.0, window=window) for window in windows]
    return gpt2.pre_norm(c, mixers, c.get("intermediate_size"))
