"""GGUF files as Hugging Face checkpoints: tensors under Hugging Face's names and in its layout, config, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Checkpoint, Tensor
from easydel.checkpoint.problems import Problems
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.weights.gguf_architecture import Architecture
from easydel.weights.gguf_architectures import find_architecture
from easydel.weights.gguf_config import AHEAD, hf_config
from easydel.weights.gguf_rope import TABLES
from easydel.weights.gguf_tensors import HFTensor, Numbers, by_kind, expert
from easydel.weights.gguf_tokenizer import chat_templates, special_tokens, tokenizer_json
from easydel.weights.sources import TensorSource

__all__ = ["HFTensor", "chat_templates", "hf_config", "hf_tensors", "special_tokens", "tokenizer_json"]

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_LAYER = re.compile(r"blk\.(\d+)\.")


def hf_tensors(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, TensorSource]:
    """Returns every tensor by its name in the model's Hugging Face checkpoint; `config` comes from `hf_config`.

    A head that is tied to the embeddings is included only if `config` does not tie it. Tables of rotary factors are
    left out: they are in the config; and so are layers that predict tokens further ahead. Raises CheckpointError for
    tensors without a place.
    """
    file = checkpoint.files[0]
    name, architecture = find_architecture(checkpoint.metadata, checkpoint, file)
    layers = _layers(checkpoint, file)
    names = _hf_names(name, architecture, layers)
    tensors, used = _joined(checkpoint, architecture, config, layers)
    tensors |= _numbers(checkpoint, architecture, layers)
    problems = Problems(file)
    for tensor in checkpoint.values():
        if tensor.name in TABLES:
            _check_table(tensor, config)
        elif tensor.name in used or _is_beyond(tensor.name, layers):
            continue
        elif parts := _cut(tensor, architecture, config):
            tensors.update(parts)
        elif (place := _place(tensor.name, names)) is None:
            problems.add(f"no {name} model has a place for it", tensor.name)
        else:
            tensors.update(_restored(tensor, place, architecture, config))
    problems.check()
    tied = _HEAD not in checkpoint and _EMBEDDING in checkpoint
    if tied and config.get("tie_word_embeddings") is not True:
        tensors[f"{names['output']}.weight"] = HFTensor(checkpoint[_EMBEDDING])
    return tensors


def _layers(checkpoint: Checkpoint, file: Path) -> int:
    """Returns the number of layers (of the longer tower) without those that predict tokens further ahead."""
    name, metadata = checkpoint.metadata["general.architecture"], checkpoint.metadata
    counts = {key: metadata.get(f"{name}.{key}", 0) for key in ("block_count", "decoder_block_count", AHEAD)}
    layers, decoder, ahead = counts.values()
    wrong = any(type(count) is not int or not 0 <= count <= len(checkpoint) for count in counts.values())
    if wrong or not ahead <= layers:
        found = ", ".join(f"{key} {str(count)[:100]}" for key, count in counts.items())
        raise ConfigError(f"has {found}, of {len(checkpoint)} tensors", file=file)
    return max(layers - ahead, decoder)


def _is_beyond(name: str, layers: int) -> bool:
    found = _LAYER.match(name)
    return found is not None and int(found[1]) >= layers


def _hf_names(name: str, architecture: Architecture, layers: int) -> dict[str, str]:
    """Maps modules, and whole names of tensors without one, from the file's to Hugging Face's; {} is the expert."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    theirs = get_tensor_name_map(MODEL_ARCH(number), layers)
    names = {"output": "lm_head"}  # the package's map has no head for some architectures that may have one
    for module in architecture.modules:
        start, _, rest = module.partition("{}")
        for filled in [f"{start}{layer}{rest}" for layer in range(layers)] if rest else [module]:
            plain = filled.replace(".{}", "")
            # the package's map has some names as the converter changes them before it looks
            found = theirs.get_name(plain) or theirs.get_name(plain.removeprefix("transformer."))
            found = found or theirs.get_name(plain.removeprefix("model."))
            if found is not None:
                names[found] = filled
    for ours, other in architecture.exact.items():
        names |= {ours.format(i): other.format(i) for i in range(layers)} if "{}" in ours else {ours: other}
    return names


def _place(name: str, names: Mapping[str, str]) -> str | None:
    """Returns the name of a tensor in the Hugging Face checkpoint."""
    if name in names:
        return names[name]
    stem, _, leaf = name.rpartition(".")
    return f"{names[stem]}.{leaf}" if stem in names and leaf in ("weight", "bias") else None


def _cut(tensor: Tensor, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, TensorSource]:
    """Returns queries, keys and values by their names, if the tensor holds all of them where the model has modules of
    their own."""
    layer, (stem, _, leaf) = _LAYER.match(tensor.name), _LAYER.sub("", tensor.name).rpartition(".")
    if layer is None or stem not in architecture.cut:
        return {}
    parts = zip(architecture.cut[stem], by_kind(tensor, config), strict=True)
    return {f"model.layers.{layer[1]}.{module}.{leaf}": HFTensor(part) for module, part in parts}


def _joined(
    checkpoint: Checkpoint, architecture: Architecture, config: Mapping[str, Any], layers: int
) -> tuple[dict[str, TensorSource], set[str]]:
    """Returns the tensors that the file has in two parts, and the names of these parts."""
    tensors: dict[str, TensorSource] = {}
    used: set[str] = set()
    for name, (first, second, join) in architecture.joined.items():
        for layer in range(layers):
            parts = [f"blk.{layer}.{part}" for part in (first, second)]
            if all(part in checkpoint for part in parts):
                tensors[name.format(layer)] = join(checkpoint[parts[0]], checkpoint[parts[1]], config)
                used.update(parts)
    return tensors, used


def _numbers(checkpoint: Checkpoint, architecture: Architecture, layers: int) -> dict[str, TensorSource]:
    """Returns the tensors that are numbers of the metadata."""
    tensors: dict[str, TensorSource] = {}
    for name, (key, shape) in architecture.numbers.items():
        if (values := checkpoint.metadata.get(key)) is None:
            continue
        if not isinstance(values, np.ndarray) or values.shape != (layers,):
            raise ConfigError(f"{key} is not one number for each of {layers} layers", file=checkpoint.files[0])
        for layer, value in enumerate(values.tolist()):
            tensors[name.format(layer)] = Numbers(key, shape, checkpoint.files[0], value)
    return tensors


def _restored(
    tensor: Tensor, place: str, architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, TensorSource]:
    tail = _LAYER.sub("", tensor.name)
    found = [change for pattern, change in architecture.changes.items() if re.fullmatch(pattern, tail)]
    change = found[0] if found else _as_it_is
    if "{}" not in place:
        return {place: change(tensor, config)}
    if len(tensor.shape) < 2:
        raise ConfigError(f"is {list(tensor.shape)}, expected one matrix for each expert", tensor=tensor.name)
    return {place.format(number): change(expert(tensor, number), config) for number in range(tensor.shape[0])}


def _as_it_is(tensor: Tensor, config: Mapping[str, Any]) -> HFTensor:
    return HFTensor(tensor)


def _check_table(tensor: Tensor, config: Mapping[str, Any]) -> None:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaling = scaling.get("full_attention", scaling)
    kind, known = scaling.get("rope_type") or scaling.get("type"), TABLES[tensor.name]
    unscaled = tensor.name == "rope_freqs.weight" and not kind and bool(np.all(tensor.read() == 1))
    if kind not in known and not unscaled:
        raise UnsupportedModelError(
            f"holds rotary factors, and the config's scaling is {kind!r}, not {' or '.join(map(repr, known))}",
            file=tensor.file,
            tensor=tensor.name,
            hint="make the config with hf_config(checkpoint.metadata, checkpoint)",
        )
