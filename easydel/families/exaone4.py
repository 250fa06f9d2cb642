"""EXAONE 4.0 (LG AI Research 2025, arXiv:2507.11407): OLMo 2's norms, those of q and k per head, and sliding layers."""

from __future__ import annotations

from collections.abc import Sequence

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.families import family, olmo2
from easydel.families.gemma2 import alternating
from easydel.families.llama import attention
from easydel.families.qwen2 import FULL, SLIDING, layer_types
from easydel.layers.attention import QKNorm
from easydel.layers.norm import RMSNorm

SIZES = {"vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32, "sliding_window": 4096}
KINDS = {"L": SLIDING, "G": FULL}


def kinds(c: HFConfig) -> Sequence[str]:
    """The type of each layer. A pattern says how often one is full, or spells it out: "LLLG"; then the last one is."""
    pattern = c.get("sliding_window_pattern", 4)
    if not isinstance(pattern, str):
        return alternating(c, pattern if c.sliding_window else 1)
    spelled = [KINDS[pattern[layer % len(pattern)]] for layer in range(c.num_hidden_layers - 1)]
    return layer_types(c, [*spelled, FULL])


@family("exaone4", olmo2.NAMES, defaults=olmo2.DEFAULTS | SIZES)
def exaone4(c: HFConfig) -> Decoder:
    norm, window = QKNorm(RMSNorm(c.rms_norm_eps)), c.sliding_window
    sliding = attention(c, qk_norm=norm, window=window)
    full = attention(c, qk_norm=norm, position=None) if window else sliding  # without a window all layers are rotated
    return olmo2.post_norm(c, [{SLIDING: sliding, FULL: full}[kind] for kind in kinds(c)])
