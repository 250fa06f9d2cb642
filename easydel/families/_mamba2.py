"""Mamba 2 in hybrids: the mixer by Bamba's keys, the layers that have it, and its fused projection."""

from collections.abc import Sequence
from typing import Any

from easydel.families._layers import checked_types
from easydel.families._parts import Fused, GatedNorm, HFConfig, Mamba2, RMSNorm
from easydel.keys import FULL
from easydel.layers.mamba2 import IN_PROJ as PARTS

LINEAR = "linear_attention"
LEGACY = {"mamba": LINEAR, "attention": FULL}  # the names in files of 2025
IN_PROJ = Fused("mixer.in_proj", tuple(f"mixer.{part}" for part in PARTS))
KERNELS = "the number of tokens that its kernels take at a time"


def mixer(c: HFConfig, inner: int | None = None, **choices: Any) -> Mamba2:
    """Returns Bamba's mixer, with `inner` channels in all heads (default: `mamba_expand` times the model's)."""
    inner = inner or c.mamba_expand * c.hidden_size
    heads, groups = c.mamba_n_heads, c.mamba_n_groups
    size = inner // heads if c.mamba_d_head == "auto" else c.mamba_d_head
    norm = GatedNorm(RMSNorm(c.rms_norm_eps), groups)
    biases = {"bias": c.mamba_proj_bias, "out_bias": c.mamba_proj_bias, "conv_bias": c.mamba_conv_bias}
    own = {"norm": norm, "limits": limits(c)} | biases | choices
    return Mamba2(heads, size, groups, c.mamba_d_state, c.mamba_d_conv, c.hidden_act, **own)


def limits(c: HFConfig) -> tuple[float, float]:
    """Returns the smallest and the largest time step; transformers writes infinity as an object."""
    low, high = (float(one["__float__"] if isinstance(one, dict) else one) for one in c.time_step_limit)
    return low, high


def kinds(c: HFConfig, default: Sequence[str]) -> Sequence[str]:
    """Returns the kind of each layer, LINEAR or FULL: from `layer_types` if the config has it."""
    stated = [LEGACY.get(kind, kind) for kind in c.get("layer_types") or default]
    return checked_types(c, "layer_types", stated, (LINEAR, FULL))
