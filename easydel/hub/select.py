"""Selects the files of a repository's folder that loading needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from easydel.checkpoint.files import INDEX_SUFFIX, PREFERENCE, read_index
from easydel.errors import HubError, listed
from easydel.weights.saved import MANIFEST

CONFIGS = {
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
    *("hf_quant_config.json", "quanto_qmap.json"),  # of ModelOpt and quanto, where config.json says nothing of them
}
# File names of transformers' tokenizers.
VOCABULARIES = {
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model"),
    *("spm.model", "source.spm", "target.spm", "vocab.json", "merges.txt", "vocab.txt", "bpe.codes"),
    *("vocab-src.json", "vocab-tgt.json"),
}
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TEMPLATES = "additional_chat_templates"  # the folder of templates with a name, each in a .jinja file
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")  # as llama.cpp's gguf-split names them


def needed(
    names: Collection[str], shards: Callable[[str], Collection[str]], *, weights: bool = True, where: str
) -> list[str]:
    """Returns those of `names`, the files of one folder, that loading needs; `shards` reads an index's shard names.

    Weights are the first that exists of model.safetensors, its index and shards, pytorch_model.bin, its index and
    shards, one GGUF file (or all parts of one), adapters. Errors call the folder `where`.
    """
    side: list[str] = sorted((CONFIGS | VOCABULARIES | {MANIFEST}).intersection(names))
    side += sorted(filter(is_template, names))
    if not weights and "config.json" in side:
        return side
    chosen = side + _weight_files(names, shards, where)
    missing = [name for name in chosen if name not in names]
    if missing:
        raise HubError(f"lacks shards that its index names, or adapters:{listed(missing)}", file=where)
    return chosen


def template_names(folder: Path) -> list[str]:
    """The named chat templates in a local folder, as "additional_chat_templates/<name>.jinja"."""
    inner = folder / TEMPLATES
    # a folder that is a link may lead anywhere
    return [] if inner.is_symlink() else sorted(f"{TEMPLATES}/{file.name}" for file in inner.glob("*.jinja"))


def is_template(name: str) -> bool:
    """Whether a file of a repository's folder is a named chat template."""
    folder, _, file = name.rpartition("/")
    return folder == TEMPLATES and file.endswith(".jinja")


def shard_names(index: Path) -> list[str]:
    """Returns the shards that an index file names, each a plain file name."""
    return sorted(set(read_index(index, local=False).values()))


def _weight_files(names: Collection[str], shards: Callable[[str], Collection[str]], where: str) -> list[str]:
    for name in PREFERENCE:
        if name in names:
            return [name, *shards(name)] if name.endswith(INDEX_SUFFIX) else [name]
    parts = sorted(name for name in names if name.endswith(".gguf"))
    if len({_GGUF_PART.sub("", name) for name in parts}) > 1:
        hint = "download one of them, and pass its path"
        raise HubError(f"has {len(parts)} GGUF files: {', '.join(parts)}", file=where, hint=hint)
    if not parts and ADAPTER_CONFIG in names:
        return [ADAPTER_CONFIG, next(filter(names.__contains__, ADAPTER_WEIGHTS), ADAPTER_WEIGHTS[0])]
    if not parts:
        there = ", ".join(sorted(names)[:20]) or "nothing"
        hint = f"expected one of {', '.join(PREFERENCE)}, or a .gguf file"
        raise HubError(f"has no weights; it holds {there}", file=where, hint=hint)
    return parts
