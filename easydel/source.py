"""An opened checkpoint: its config and the headers of its tensors, without any weight."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from easydel.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from easydel.checkpoint.files import check_links
from easydel.checkpoint.open import open_remote
from easydel.config import HFConfig, shown
from easydel.errors import CheckpointError, UnsupportedModelError
from easydel.families import find_family, find_wrapper
from easydel.garbage import collected_later
from easydel.policy import FLOATS
from easydel.weights.names import Names
from easydel.weights.saved import MANIFEST, Manifest, coded, read_manifest
from easydel.weights.sources import TensorSource
from easydel.weights.wrapped import unwrapped

if TYPE_CHECKING:  # it imports huggingface_hub
    from easydel.hub.streamed import Streamed

logger = logging.getLogger(__name__)
QUANTIZATION = ("quantization_config", "quantization", "compression_config")  # the last: older compressed-tensors
QUANTIZATION_FILES = {"hf_quant_config.json": "modelopt", "quanto_qmap.json": "quanto"}
SETTINGS = ("config.json", "generation_config.json", MANIFEST, *QUANTIZATION_FILES)


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint with its headers read: its config, its tensors, and the manifest if `save_pretrained` wrote it.

    `layers` are the numbers in files of the layers that are read, if these are not all: the model counts them anew.
    `names` is the table of these files, if they have other names and layouts than the model's own.
    """

    path: Path
    config: HFConfig
    checkpoint: Checkpoint
    tensors: Mapping[str, TensorSource]
    manifest: Manifest | None
    identity: tuple[int, int] | None = None
    layers: tuple[int, ...] | None = None
    names: Names | None = None

    def stored(self, dequantize: bool | None) -> Mapping[str, TensorSource]:
        """Returns the tensors; those of a GGUF file are floats unless `dequantize` is False."""
        if self.checkpoint.format != "gguf" or dequantize is not False:
            return self.tensors
        from easydel.weights.gguf_codes import by_codes

        return by_codes(self.tensors)

    def check_same(self) -> None:
        """Raises CheckpointError if the directory was replaced since its first file was read: files would not match."""
        if self.identity is not None and identity_of(self.path) != self.identity:
            raise CheckpointError("was replaced while it was read", file=self.path, hint="load it again")


def identity_of(path: Path) -> tuple[int, int]:
    """Returns numbers that identify a directory or file, whatever its name."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", file=path) from error
    return found.st_dev, found.st_ino


@collected_later()
def open_source(where: Path | Streamed, *, saved: bool, follow_links: bool = False) -> CheckpointSource:
    """Reads config and headers of a directory, a single file, or a repository whose weights stay on the Hub.

    A single file needs a config.json beside it, unless it is a GGUF file, which holds its own.
    What `save_pretrained` wrote is recognised; with `saved` it has to be that.
    """
    path = where if isinstance(where, Path) else where.directory
    directory, identity = path if path.is_dir() else path.parent, identity_of(path)
    if not follow_links:
        check_links(directory, [directory / name for name in SETTINGS if (directory / name).is_symlink()])
    saved = saved or (directory / MANIFEST).is_file()
    manifest = read_manifest(directory) if saved else None
    if isinstance(where, Path):
        checkpoint = open_checkpoint(find_checkpoint(path, follow_links=follow_links))
    else:
        checkpoint = open_remote(where.weights, where.index_file)
    if checkpoint.format == "gguf":
        from easydel.weights.gguf import hf_tensors

        config = gguf_config(checkpoint)
        return CheckpointSource(path, config, checkpoint, hf_tensors(checkpoint, config.to_dict()), None, identity)
    config = HFConfig.from_file(directory / "config.json")
    if manifest is not None:
        tensors = coded(checkpoint, manifest, directory / MANIFEST)
    else:
        config, tensors = dequantized(config, checkpoint, directory)
    return CheckpointSource(path, config, checkpoint, unwrapped(tensors), manifest, identity)


def is_quantized(path: Path) -> bool:
    """True for a checkpoint whose weights a quantization library packed, or whose language model's weights."""
    directory = path if path.is_dir() else path.parent
    if path.suffix == ".gguf" or not (directory / "config.json").is_file():
        return False
    return any(quantization(one, directory)[0] is not None for one in _configs(directory))


def quantization_method(source: CheckpointSource) -> str | None:
    """Returns the name of the method by which weights are quantized, as the checkpoint has it; None if they are not."""
    directory = source.path if source.path.is_dir() else source.path.parent
    settings = [found for one in _configs(directory) if (found := quantization(one, directory)[0]) is not None]
    return str(settings[0].get("quant_method")) if settings else None


def _configs(directory: Path) -> list[HFConfig]:
    """Returns a directory's config, and that of the language model in it if it has one."""
    config = HFConfig.from_file(directory / "config.json")
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, HFConfig) else [config]


def stored_dtype(source: CheckpointSource) -> jnp.dtype:
    """Returns the float dtype that holds most of the checkpoint's numbers; bfloat16 if that is a quantized form."""
    sizes: Counter[jnp.dtype] = Counter()
    for tensor in source.checkpoint.values():
        plain = tensor.encoding is None and tensor.dtype in map(jnp.dtype, FLOATS)
        sizes[jnp.dtype(tensor.dtype if plain else jnp.bfloat16)] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else jnp.dtype(jnp.float32)


def language_model(source: CheckpointSource) -> CheckpointSource:
    """Returns `source`, or for a multimodal checkpoint its language model as a source of its own."""
    outer = source.config
    wrapper = find_wrapper(outer.get("model_type"))
    if wrapper is None or source.manifest is not None:
        return source
    config, tensors = wrapper.language_config(outer), source.tensors
    if any(key in config for key in QUANTIZATION):
        directory = source.path if source.path.is_dir() else source.path.parent
        config, tensors = dequantized(config, source.checkpoint, directory)
    try:
        find_family(config.model_type)
    except UnsupportedModelError as error:
        problem = f"is a {wrapper.model_type} whose language model is {shown(config.model_type)}: not implemented"
        raise UnsupportedModelError(problem, file=outer.file, hint=error.hint) from None
    logger.warning(
        "%s: only the language model of this %s is loaded (%s): text, no images or sound",
        source.path,
        wrapper.model_type,
        config.model_type,
    )
    layers = None if wrapper.layers is None else tuple(wrapper.layers(outer))
    found = wrapper.language_tensors(outer, tensors)
    return replace(source, config=config, tensors=found, layers=layers, names=wrapper.names)


def read_config(path: Path) -> HFConfig:
    """Returns the config at `path`: a directory, or one file beside a config.json. A GGUF file holds its own.

    For a known multimodal model it is the language model's config.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if path.suffix != ".gguf" and (file.is_file() or not list(path.glob("*.gguf"))):
        config = HFConfig.from_file(file)
        wrapper = find_wrapper(config.get("model_type"))
        return config if wrapper is None else wrapper.language_config(config)
    return gguf_config(open_checkpoint(find_checkpoint(path)))


def gguf_config(checkpoint: Checkpoint) -> HFConfig:
    from easydel.weights.gguf import hf_config

    return HFConfig(hf_config(checkpoint.metadata, checkpoint), file=checkpoint.files[0])


def dequantized(
    config: HFConfig, checkpoint: Checkpoint, directory: Path
) -> tuple[HFConfig, Mapping[str, TensorSource]]:
    """Returns the config without its entries on quantized weights, and tensors that decode them.

    Raises UnsupportedModelError if they are quantized in a way that is not known here.
    """
    settings, file = quantization(config, directory)
    if settings is None:
        return config, checkpoint
    from easydel.weights.formats import unpacked  # many readers, which take a while to import

    values = {key: value for key, value in config.to_dict().items() if key not in QUANTIZATION}
    return HFConfig(values, file=config.file), unpacked(settings, checkpoint, file)


def quantization(config: HFConfig, directory: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """Returns what a checkpoint says about its quantization and the file that says it; None if nothing does.

    MLX has no name for itself. ModelOpt and quanto may write files of their own, and nothing into config.json.
    """
    stated = [entry for key in QUANTIZATION if (entry := config.get(key))]
    if stated:
        entries = [entry.to_dict() for entry in stated if isinstance(entry, HFConfig)]
        named = next((entry for entry in entries if "quant_method" in entry), None)
        if named is not None or not entries:
            return named or {}, config.file
        method = "modelopt" if "quant_algo" in entries[0] else "mlx" if "bits" in entries[0] else None
        return {"quant_method": method, **entries[0]}, config.file
    for name, method in QUANTIZATION_FILES.items():
        if (file := directory / name).is_file():
            found = HFConfig.from_file(file).to_dict()
            inner = found.get("quantization")
            return {**(inner if isinstance(inner, dict) else found), "quant_method": method}, file
    return None, None
