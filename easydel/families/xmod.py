"""X-MOD (Pfeiffer et al. 2022, arXiv:2205.06266): RoBERTa with an adapter for each language behind every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
from flax import nnx

from easydel.families._parts import (
    MLP,
    AnyNorm,
    Block,
    ConfigError,
    Decoder,
    HFConfig,
    Names,
    Transform,
    family,
)
from easydel.families.bert import embed, encoder, names as bert_names, norm
from easydel.families.roberta import HEAD
from easydel.layers.block import BlockLayer, normed
from easydel.policy import Policy

ADAPTERS = {
    r"adapters\.([^.]+)\.up_proj": r"output.adapter_modules.\1.dense1",
    r"adapters\.([^.]+)\.down_proj": r"output.adapter_modules.\1.dense2",
    "adapter_layernorm": "output.adapter_layer_norm",
}
PRE_NORM = {"input_layernorm": "attention.output.LayerNorm", "post_attention_layernorm": "output.LayerNorm"}
FINAL = {r"model\.norm": "roberta.encoder.LayerNorm"}


@dataclass(frozen=True, kw_only=True)
class Adapted(Block):
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

    def build(self, features: int, policy: Policy) -> AdaptedLayer:
        return AdaptedLayer(self, features, policy)


class AdaptedLayer(BlockLayer):
    def __init__(self, record: Adapted, features: int, policy: Policy):
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


def names(c: HFConfig) -> Names:
    return bert_names("roberta", "lm_head", HEAD | ADAPTERS | PRE_NORM | FINAL)(c)


def chosen(c: HFConfig) -> str:
    """The language that the text is in."""
    language, known = c.get("default_language"), c.languages
    if language not in known:
        problem = f"default_language is {language!r}, expected one of {', '.join(known)}"
        raise ConfigError(problem, file=c.file, hint=f"choose one: config_kwargs={{'default_language': {known[0]!r}}}")
    return language


@family("xmod", names)
def xmod(c: HFConfig) -> Decoder:
    plain = encoder(c, embed(c, first=c.pad_token_id + 1), Transform("gelu", norm(c)), pre_norm=c.pre_norm)
    adapter = MLP(c.hidden_size // c.adapter_reduction_factor, c.hidden_act)
    block, own_norm = plain.blocks[0], norm(c) if c.adapter_layer_norm else None
    adapted = Adapted(
        **{field.name: getattr(block, field.name) for field in fields(block)},
        adapter=adapter,
        languages=tuple(c.languages),
        language=chosen(c),
        own_norm=own_norm,
        reuse=c.adapter_reuse_layer_norm,
        from_read=c.ln_before_adapter,
    )
    return replace(plain, blocks=(adapted,) * len(plain.blocks))
