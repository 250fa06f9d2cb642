"""GLM-5 (Z.ai 2026, arXiv:2602.15763): DeepSeek-V3.2 whose layers may share what an indexer chose."""

from collections.abc import Sequence
from dataclasses import replace

from easydel.families import deepseek_v3 as v3, deepseek_v32 as v32, llama as base
from easydel.families._experts import FUSED_BY_PEFT
from easydel.families._layers import checked_types
from easydel.families._parts import ConfigError, Decoder, HFConfig, SharedIndexer, family

INDEXES, SHARES = "full", "shared"
PATTERN = {"F": INDEXES, "S": SHARES}


def indexers(c: HFConfig) -> list[str]:
    """Whether each layer has an indexer or takes over what an earlier one chose: listed, as letters, or by a period."""
    layers, pattern = range(c.num_hidden_layers), c.get("index_topk_pattern")
    period, first = max(c.get("index_topk_freq", 1), 1), c.get("index_skip_topk_offset", 2)
    kinds: Sequence[str]
    key, kinds = "indexer_types", [SHARES if max(layer - first + 1, 0) % period else INDEXES for layer in layers]
    if c.get(key) is not None:
        kinds = c.get(key)
    elif pattern is not None:
        key, kinds = "index_topk_pattern", [str(PATTERN.get(kind, kind)) for kind in pattern]
    return checked_indexers(c, f"{key} (or index_topk_freq, index_skip_topk_offset)", kinds)


def checked_indexers(c: HFConfig, key: str, kinds: Sequence[str]) -> list[str]:
    """Returns `kinds`, one for each layer, of which the first has an indexer."""
    found = list(checked_types(c, key, kinds, (INDEXES, SHARES)))
    if found[0] == SHARES:
        raise ConfigError(f"{key}: no layer before the first has an indexer", file=c.file)
    return found


@family("glm_moe_dsa", v3.names, inert=v32.INERT, peft_lacks=FUSED_BY_PEFT)
def glm_moe_dsa(c: HFConfig) -> Decoder:
    own = v32.attention(c, interleaved=True)
    shared = replace(own, select=SharedIndexer())
    return base.pre_norm(c, [own if kind == INDEXES else shared for kind in indexers(c)], v32.ffns(c))
