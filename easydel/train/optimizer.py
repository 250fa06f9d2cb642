"""The optimizer of the train command."""

from __future__ import annotations

from typing import Any

import jax

from easydel.train.data import needed

DECAYED = ("kernel", "embedding", "lora_A", "lora_B")
LAST = 0.1  # of the peak, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165) and Llama


def adamw(peak: float, steps: int, *, warmup: int = 0, weight_decay: float = 0.0) -> Any:
    """Returns AdamW (betas 0.9 and 0.95, as in GPT-3).

    The rate rises to `peak` in `warmup` steps, then falls to a tenth as a cosine until `steps`. Norms and biases do not
    decay.
    """
    optax = needed("optax")
    rate = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, max(steps, warmup + 1), end_value=LAST * peak
    )
    return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=_decays)


def _decays(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
