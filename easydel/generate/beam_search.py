"""Runs a beam search: the programs of a greedy decode, with rows for every beam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from easydel.generate.decoding import looped
from easydel.generate.prefill import begin
from easydel.generate.prompt import Prompt
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules

# B prompts, N best texts of a prompt, S slots


def search(
    model: LanguageModel,
    params: Mapping[str, Any],
    prompt: Prompt,
    source: Prompt | None,
    rules: Rules,
    new: int,
    returned: int,
    chunk: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the new tokens of the best `returned` texts of each prompt, [B * returned, at most `new`], and scores.

    The best comes first. Prompts are read once, not once for each beam.
    """
    state, made, slots = begin(model, params, prompt, source, rules, None, chunk)
    _, state = looped(model, params, state, made, rules, new, slots)
    found = state.search
    assert found is not None
    texts_BNS, lengths_BN, scores_BN = (
        np.asarray(part)[:, :returned] for part in (found.texts_BNS, found.lengths_BN, found.final_BN)
    )
    tokens_BNS = texts_BNS[:, :, slots : slots + int(lengths_BN.max())]
    behind = np.arange(tokens_BNS.shape[2]) >= lengths_BN[..., None]
    tokens_BNS = np.where(behind, _filling(rules), tokens_BNS)
    return tokens_BNS.reshape(-1, tokens_BNS.shape[2]), scores_BN.reshape(-1)


def _filling(rules: Rules) -> int:
    """Returns the token behind texts that ended early: as in transformers, a padding token 0 gives way to an end."""
    return int(rules.pad) or (int(rules.eos_E[0]) if rules.eos_E is not None else 0)
