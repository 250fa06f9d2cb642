"""The forms of adapters: ours, one for each of our matrices, and those of files, one for each of the checkpoint's.

A matrix of the checkpoint may hold several of ours, one below the other (q | k | v). PEFT gives it one pair of factors;
here each part has its own. The pair of a file is taken apart by copying its A to each part; parts with factors of their
own make a pair of the sum of their ranks, whose B is 0 outside of one block for each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# transformers' parameters of all experts, in its order, and our kernels in each, one below the other
EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}


class Factors(NamedTuple):
    """`low` [..., r, in] and `high` [..., out, r]; in files of experts, [experts * r, in] and [out, r * experts]."""

    low: np.ndarray
    high: np.ndarray


def joined(parts: Sequence[Factors], rows: Sequence[np.ndarray], total: int) -> Factors:
    """Returns one pair for a matrix of `total` rows, of which each of the parts has some."""
    low = np.concatenate([part.low for part in parts], axis=-2)
    high = np.zeros((*low.shape[:-2], total, low.shape[-2]), np.float32)
    column = 0
    for part, own in zip(parts, rows, strict=True):
        rank = part.low.shape[-2]
        high[..., own, column : column + rank] = part.high
        column += rank
    return Factors(low, high)


def parted(whole: Factors, rows: Sequence[np.ndarray]) -> list[Factors | None]:
    """Returns a pair for each part of a matrix; None for a part that nothing is added to, though to others there is.

    What `joined` made of parts of equal ranks is taken apart into just these.
    """
    rank, count = whole.low.shape[-2], len(rows)
    highs = [whole.high[..., own, :] for own in rows]
    share = rank // count
    blocks = [slice(part * share, (part + 1) * share) for part in range(count)]
    outside = [np.delete(high, np.r_[block], axis=-1) for high, block in zip(highs, blocks, strict=True)]
    if count > 1 and rank % count == 0 and not any(other.any() for other in outside):
        return [Factors(whole.low[..., block, :], high[..., block]) for high, block in zip(highs, blocks, strict=True)]
    used = [high.any() for high in highs]
    return [Factors(whole.low, high) if own or not any(used) else None for high, own in zip(highs, used, strict=True)]


def flattened(factors: Factors) -> Factors:
    """Returns the form that factors of experts, [experts, r, in] and [experts, out, r], have in files."""
    _, _, inputs = factors.low.shape
    return Factors(factors.low.reshape(-1, inputs), factors.high.transpose(1, 2, 0).reshape(factors.high.shape[1], -1))


def unflattened(factors: Factors, experts: int) -> Factors:
    """Returns [experts, r, in] and [experts, out, r]: in files, the expert runs slowest in A and fastest in B."""
    low = factors.low.reshape(experts, -1, factors.low.shape[-1])
    return Factors(low, factors.high.reshape(factors.high.shape[0], -1, experts).transpose(2, 0, 1))
