"""Functions of transformers 5.23 that compute something else than their models were trained with, put right."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeExperts
from transformers.models.prophetnet.modeling_prophetnet import ProphetNetNgramSelfAttention

of_single_tokens = ProphetNetNgramSelfAttention.get_predict_relative_pos_embeddings


def experts_by_number(self: Any, hidden: torch.Tensor, router_mask: torch.Tensor, weights: torch.Tensor) -> Any:
    """Each expert's output by its weight. transformers 5.23 takes the mask's values, 0 and 1, for experts' numbers."""
    kept = 1 - self.moe_token_dropout
    return sum(self[f"expert_{n}"](hidden) * weights[:, n, None] * kept for n in range(self.num_experts))


def bias_of_predictions(self: Any, hidden: torch.Tensor, scores: torch.Tensor, positions: Any, buckets: Any) -> Any:
    """The bias of each prediction by its own input. Of several tokens, transformers 5.23 takes that of another token's
    head: a pass of several tokens differs from its own passes of one after the other, which are right."""
    if buckets is None:
        return of_single_tokens(self, hidden, scores, positions, buckets)
    rows = self.relative_pos_embeddings(hidden).unflatten(-1, (self.num_buckets, self.num_attn_heads))
    rows = rows.permute(0, 2, 4, 1, 3)  # batch, streams, heads, tokens, buckets
    return rows.gather(-1, buckets[:, None, None].long().expand(*rows.shape[:4], -1))


def mend() -> None:
    mended: Any = ProphetNetNgramSelfAttention
    mended.get_predict_relative_pos_embeddings = bias_of_predictions
    NllbMoeExperts.forward = experts_by_number  # pyright: ignore[reportAttributeAccessIssue]
