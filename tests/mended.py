"""Functions of transformers 5.23 that compute something else than their models were trained with, put right."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeExperts


def experts_by_number(self: Any, hidden: torch.Tensor, router_mask: torch.Tensor, weights: torch.Tensor) -> Any:
    """Each expert's output by its weight. transformers 5.23 takes the mask's values, 0 and 1, for experts' numbers."""
    kept = 1 - self.moe_token_dropout
    return sum(self[f"expert_{n}"](hidden) * weights[:, n, None] * kept for n in range(self.num_experts))


def mend() -> None:
    NllbMoeExperts.forward = experts_by_number  # pyright: ignore[reportAttributeAccessIssue]
