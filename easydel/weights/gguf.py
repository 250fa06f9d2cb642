"""GGUF files as Hugging Face checkpoints: tensors under Hugging Face's names and in its layout, config, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Checkpoint, Tensor
from easydel.checkpoint.problems import Problems
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.weights.gguf_architectures import Architecture, find_architecture
from easydel.weights.gguf_config import hf_config
from easydel.weights.gguf_rope import TABLES
from easydel.weights.gguf_tokenizer import chat_templates, special_tokens, tokenizer_json

__all__ = ["HFTensor", "chat_templates", "hf_config", "hf_tensors", "special_tokens", "tokenizer_json"]

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, eq=False)
class HFTensor:
    """A tensor of the file with the changes of llama.cpp's converter undone, for whichever part is read.

    Row r is the file's row `rows[r]`; `add` is added to every value; `transposed` swaps both dimensions.
    """

    tensor: Tensor
    rows: np.ndarray | None = None
    add: float | None = None
    transposed: bool = False

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def file(self) -> Path:
        return self.tensor.file

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype if self.add is None else np.dtype(np.float32)

    @property
    def turned(self) -> Tensor | None:
        return self.tensor if self.transposed else None

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns the slice `index`, as a view of the file where nothing needs to be computed."""
        if self.transposed:
            full = (*index, *(slice(None) for _ in range(len(self.shape) - len(index))))
            return self.tensor.read(full[::-1]).T
        values = self._read_rows(index) if self.rows is not None and index else self.tensor.read(index)
        if self.rows is not None and not index:
            values = values[self.rows]
        # float32: the converter also added to float32 values
        return values if self.add is None else values.astype(np.float32) + np.float32(self.add)

    def _read_rows(self, index: tuple[slice, ...]) -> np.ndarray:
        assert self.rows is not None
        wanted = self.rows[index[0]]
        first, stop = (wanted.min(), wanted.max() + 1) if len(wanted) else (0, 0)
        return self.tensor.read((slice(int(first), int(stop)), *index[1:]))[wanted - first]


def hf_tensors(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, HFTensor]:
    """Returns every tensor by its name in the model's Hugging Face checkpoint; `config` comes from `hf_config`.

    A head that is tied to the embeddings is included only if `config` does not tie it. Tables of rotary factors are
    left out: they are in the config. Raises CheckpointError for tensors without a place.
    """
    file = checkpoint.files[0]
    name, architecture = find_architecture(checkpoint.metadata, file)
    names = _hf_names(name, architecture, _layers(checkpoint, file))
    problems = Problems(file)
    tensors: dict[str, HFTensor] = {}
    for tensor in checkpoint.values():
        stem, _, leaf = tensor.name.rpartition(".")
        if tensor.name in TABLES:
            _check_table(tensor, config)
        elif stem in names and leaf in ("weight", "bias"):
            tensors[f"{names[stem]}.{leaf}"] = _restored(tensor, stem, architecture, config)
        else:
            problems.add(f"no {name} model has a place for it", tensor.name)
    problems.check()
    if _HEAD not in checkpoint and _EMBEDDING in checkpoint and config.get("tie_word_embeddings") is not True:
        tensors["lm_head.weight"] = HFTensor(checkpoint[_EMBEDDING])
    return tensors


def _layers(checkpoint: Checkpoint, file: Path) -> int:
    layers = checkpoint.metadata.get(f"{checkpoint.metadata['general.architecture']}.block_count")
    if type(layers) is not int or not 0 <= layers <= len(checkpoint):
        raise ConfigError(f"its block_count is {str(layers)[:100]}, of {len(checkpoint)} tensors", file=file)
    return layers


def _hf_names(name: str, architecture: Architecture, layers: int) -> dict[str, str]:
    """Maps tensor names without ".weight" or ".bias" from the file's to Hugging Face's."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    theirs = get_tensor_name_map(MODEL_ARCH(number), layers)
    modules = [
        module.format(layer)
        for module in architecture.modules
        for layer in (range(layers) if "{}" in module else range(1))
    ]
    return {gguf: module for module in modules if (gguf := theirs.get_name(module)) is not None} | {
        # the package's map of GPT-2-like names has no head for some architectures that may have one
        "output": "lm_head"
    }


def _restored(tensor: Tensor, stem: str, architecture: Architecture, config: Mapping[str, Any]) -> HFTensor:
    if architecture.permuted and stem.endswith((".attn_q", ".attn_k")):
        heads = config.get("num_attention_heads" if stem.endswith("q") else "num_key_value_heads")
        return HFTensor(tensor, rows=_rotary_rows(tensor, heads))
    if architecture.norm_offset and stem.endswith("norm"):
        return HFTensor(tensor, add=-architecture.norm_offset)
    return HFTensor(tensor, transposed=architecture.transposed and stem.startswith("blk.") and len(tensor.shape) == 2)


def _rotary_rows(tensor: Tensor, heads: object) -> np.ndarray:
    """Returns each row's place in the file, where the two channels of a rotation are side by side."""
    count = tensor.shape[0] if tensor.shape else 0
    if not isinstance(heads, int) or heads < 1 or count % (2 * heads):
        raise ConfigError(f"has {count} rows, which {heads} heads cannot share", file=tensor.file, tensor=tensor.name)
    return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _check_table(tensor: Tensor, config: Mapping[str, Any]) -> None:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    unscaled = tensor.name == "rope_freqs.weight" and not kind and bool(np.all(tensor.read() == 1))
    if kind != TABLES[tensor.name] and not unscaled:
        raise UnsupportedModelError(
            f"holds rotary factors, and the config's scaling is {kind!r}, not {TABLES[tensor.name]!r}",
            file=tensor.file,
            tensor=tensor.name,
            hint="make the config with hf_config(checkpoint.metadata, checkpoint)",
        )
