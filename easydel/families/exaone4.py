"""EXAONE 4.0 (LG AI Research 2025, arXiv:2507.11407): OLMo 2's norms, those of q and k per head, and sliding layers."""

from collections.abc import Sequence

from easydel.families import olmo2
from easydel.families._layers import FULL, SLIDING, alternating, layer_types
from easydel.families._parts import Attention, Decoder, HFConfig, QKNorm, RMSNorm, family
from easydel.families.llama import attention

KINDS = {"L": SLIDING, "G": FULL}


def kinds(c: HFConfig) -> Sequence[str]:
    """Returns the type of each layer. A pattern is the period of full layers, or text ("LLLG"; the last is full)."""
    pattern = c.get("sliding_window_pattern", 4)
    if not isinstance(pattern, str):
        return alternating(c, pattern if c.sliding_window else 1)
    spelled = [KINDS[pattern[layer % len(pattern)]] for layer in range(c.num_hidden_layers - 1)]
    return layer_types(c, [*spelled, FULL])


def attentions(c: HFConfig) -> Sequence[Attention]:
    """Returns the attention of each layer; without a window all layers are rotated."""
    norm, window = QKNorm(RMSNorm(c.rms_norm_eps)), c.sliding_window
    sliding = attention(c, norms=norm, window=window)
    full = attention(c, norms=norm, position=None) if window else sliding
    return [{SLIDING: sliding, FULL: full}[kind] for kind in kinds(c)]


# sliding_window_pattern: the class's default is 4, but the key may also hold text
@family("exaone4", olmo2.NAMES, defaults={"sliding_window_pattern": None})
def exaone4(c: HFConfig) -> Decoder:
    return olmo2.post_norm(c, attentions(c))
