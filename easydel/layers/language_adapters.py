"""Layers with an adapter for each language (Pfeiffer et al. 2022, arXiv:2205.06266)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from easydel.layers.block import Block, BlockLayer, normed
from easydel.layers.mlp import MLP
from easydel.layers.norm import AnyNorm
from easydel.policy import Policy


@dataclass(frozen=True, kw_only=True)
class LanguageAdapted(Block):
    """A layer with an `adapter` behind it for each of `languages`, of which the one for `language` is used.

    The adapter reads through a norm of its own (`own_norm`), else (`reuse`) through that of the feed-forward, else as
    it is. It is added to what it read (`from_read`) or to the layer's output.
    """

    adapter: MLP
    languages: tuple[str, ...]
    language: str
    own_norm: AnyNorm | None
    reuse: bool
    from_read: bool

    def build(self, features: int, policy: Policy) -> LanguageAdaptedLayer:
        return LanguageAdaptedLayer(self, features, policy)


class LanguageAdaptedLayer(BlockLayer):
    def __init__(self, record: LanguageAdapted, features: int, policy: Policy):
        super().__init__(record, features, policy)
        built = {language: record.adapter.build(features, policy) for language in record.languages}
        self.adapters = Adapters(built)
        self.adapter_layernorm = None if record.own_norm is None else record.own_norm.build(features, policy)
        self.adapted = record

    def _sequential(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        x_BTD = x_BTD + run("mixer", normed(self.input_layernorm, x_BTD))
        x_BTD = normed(self.attn_output_layernorm, x_BTD)
        x_BTD = x_BTD + run("ffn", normed(self.post_attention_layernorm, x_BTD))
        return normed(self.mlp_output_layernorm, self._spoken(x_BTD, run))

    def _spoken(self, x_BTD: jax.Array, run: Any) -> jax.Array:
        """Returns the layer's output after the adapter."""
        read = x_BTD
        if self.adapter_layernorm is not None:
            read = self.adapter_layernorm(x_BTD)
        elif self.adapted.reuse:
            read = normed(self.post_attention_layernorm or self.mlp_output_layernorm, x_BTD)
        added, _ = getattr(self.adapters, self.adapted.language)(read, run.context, None)
        return (read if self.adapted.from_read else x_BTD) + added


class Adapters(nnx.Module):
    """The adapters, each an attribute with the name of its language."""

    def __init__(self, adapters: Mapping[str, Any]):
        for language, adapter in adapters.items():
            setattr(self, language, adapter)
