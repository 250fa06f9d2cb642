"""The one call: from a name on the Hub, or a path, to a model in JAX."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from easydel.compilation import use_compilation_cache
from easydel.config import HFConfig, shown
from easydel.errors import ArgumentError, ConfigError, UnsupportedModelError
from easydel.families import Family, find_family
from easydel.hub import fetch
from easydel.loading import build_model, load_weights
from easydel.model import BaseNNXModule
from easydel.options import HUB_OPTIONS, LoadOptions
from easydel.processes import one_outcome
from easydel.sharding import PartitionAxis, Rules
from easydel.source import language_model, open_source, read_config, stored_dtype
from easydel.tree import Tree

NAME = "pretrained_model_name_or_path"
logger = logging.getLogger(__name__)


class AutoEasyDeLConfig:
    """The config of a model, without the model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub_options: Any) -> HFConfig:
        """Returns the config.json of a Hub id or path, unchecked against any model. Takes the Hub's options.

        For a multimodal model it is the config of the language model, the only part that is loaded.
        """
        if unknown := sorted(set(hub_options) - set(HUB_OPTIONS)):
            raise ArgumentError(f"unknown arguments {unknown}", hint=f"the Hub's options are {', '.join(HUB_OPTIONS)}")
        return read_config(fetch(pretrained_model_name_or_path, weights=False, **hub_options))


class AutoEasyDeLModelForCausalLM:
    """A loader of language models by name; not to be instantiated."""

    encoder_decoder = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: jax.Device | None = None,  # pyright: ignore[reportInvalidTypeForm] (a class at run time)
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        precision: jax.lax.PrecisionLike = jax.lax.Precision("fastest"),  # noqa: B008 (an enum member)
        sharding_axis_dims: Sequence[int] = (1, -1, 1, 1),
        sharding_axis_names: Sequence[str] = ("dp", "fsdp", "tp", "sp"),
        partition_axis: PartitionAxis = PartitionAxis(),  # noqa: B008 (frozen)
        shard_attention_computation: bool = True,
        input_shape: tuple[int, int] = (1, 1),
        shard_fns: Mapping[Any, Any] | None = None,
        backend: str | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        auto_shard_params: bool = False,
        partition_rules: Rules | None = None,
        load_in_8bit: bool = False,
        bit_targeted_params: Sequence[str] | None = None,
        verbose_params: bool = False,
        from_torch: bool = True,
        *,
        load_in_4bit: bool = False,
        dequantize: bool | None = None,
        scan_layers: bool = False,
        stream: bool = False,
        remat: bool | str | None = None,
        progress: bool | None = None,
        donatable: bool = False,
        allow_nonfinite: bool = False,
        compilation_cache: bool = True,
        while_loading: Callable[[BaseNNXModule, Tree], object] | None = None,
        **kwargs: Any,
    ) -> tuple[BaseNNXModule, Tree]:
        """Loads a checkpoint: fetches, converts, shards and perhaps quantizes it in one streaming pass.

        Returns the model and its parameters, a nested dict that shares the model's arrays. Kernels are [out, in], as
        in the checkpoint.

        Args:
            pretrained_model_name_or_path: Hub id, local directory, or one .safetensors, .gguf or .bin file.
            device: the place of parameters that nothing shards, and their first place before `shard_fns`. Default: the
                first CPU.
            dtype: of the computation; "auto" for the checkpoint's.
            param_dtype: of the stored parameters; "auto" for the checkpoint's, which takes no more memory than the
                files: 16 GB for 8 billion parameters, where float32 takes 32. Quantized files count as bfloat16.
            precision: of every matrix product; a `jax.lax.Precision` or its name.
            sharding_axis_dims: sizes of the mesh axes; one -1 takes the remaining devices. The mesh is used by
                `auto_shard_params` or `shard_fns`: without either, asking for one of several devices is an error.
            sharding_axis_names: names of those axes.
            partition_axis: which mesh axis each logical axis of the model is split over.
            shard_attention_computation: constrain queries, keys, values and outputs to the mesh.
            input_shape: (batch, length) with which the model is traced before any weight is read.
            shard_fns: path -> function, called with each parameter as it arrives; nested, or flat with tuples or
                "a/b/c" as keys. Ignored, with a warning, if `auto_shard_params`.
            backend: the JAX backend whose devices make the mesh.
            config_kwargs: overrides of the model's config.
            auto_shard_params: place every parameter on the mesh by `partition_rules`.
            partition_rules: ordered (regex on the path, PartitionSpec); default: rules for every family. They are an
                error without `auto_shard_params`.
            load_in_8bit: store kernels and embeddings as int8 with a scale per row.
            bit_targeted_params: the parameters to quantize to that many bits, by leaf, module name or path; default:
                all that can be.
            verbose_params: print parameter counts and bytes, in the checkpoint and loaded.
            from_torch: False if the directory or repository was written by `save_pretrained` of this project.
            load_in_4bit: store kernels as int4 with a scale per 64 numbers of a row, embeddings and the head as int8.
            dequantize: True makes floats of `param_dtype` of weights that the checkpoint has quantized, False leaves
                them at their own bits wherever the model can hold them so. Default: True for GGUF files, else False.
            scan_layers: store equal layers stacked and run them by `jax.lax.scan`: compiles faster.
            stream: do not download weights: each process receives its own bytes by HTTP ranges, straight into memory.
                Safetensors only; local paths are loaded as without it.
            remat: recompute activations in the backward pass: True for all within a layer; "save_attention", "save_mlp"
                or "save_attention_and_mlp" for all but those; or the name of a `jax.checkpoint_policies` entry.
            progress: show a progress bar; default: if stderr is a terminal.
            donatable: copy each array into memory that JAX owns, so that a training step that donates the parameters
                updates them in place from the first step on. Otherwise the first such step makes the copy.
            allow_nonfinite: load weights that are NaN or Inf; otherwise they are an error that names their tensors.
            compilation_cache: keep compiled programs of this process in the user's cache directory, unless JAX was
                configured with a directory (`jax_compilation_cache_dir`) or to keep none.
            while_loading: called in a thread while weights are read, with the model and its parameters as shapes
                (`jax.ShapeDtypeStruct` with dtype and sharding): `easydel.generate.compile_ahead(...)` is one.
            **kwargs: Hub options (revision, token, cache_dir, subfolder, local_files_only, force_download); any other
                name overrides the config, and is an error if the config does not know it either.

        Raises:
            EasyDeLError: CheckpointError, ConfigError, UnsupportedModelError, ShardingError, HubError, ArgumentError.
        """
        # the given arguments, by name: no other local variable exists yet
        arguments = {name: value for name, value in locals().items() if name not in ("cls", NAME, "kwargs")}
        options = LoadOptions.of(**arguments, **kwargs)
        options.tell_unused()
        if options.compilation_cache:
            use_compilation_cache()
        with one_outcome() as check_others:
            files = options.obtain(pretrained_model_name_or_path)
            source = language_model(open_source(files, saved=not options.from_torch))
            options = options.settled(stored_dtype(source))
            family = choose_family(source.config, encoder_decoder=cls.encoder_decoder)
            config = options.configured(family, source.config)
            model = build_model(family, config, options.policy, source)
            params = load_weights(model, source, options, check_others)
        return model, params


class AutoEasyDeLModelForSeq2SeqLM(AutoEasyDeLModelForCausalLM):
    """A loader of encoder-decoder models by name (BART, T5), with the same arguments."""

    encoder_decoder = True


def choose_family(config: HFConfig, *, encoder_decoder: bool) -> Family:
    """Returns a config's family. A checkpoint saved as an encoder-decoder is loaded as one by either class."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            "has no model_type" if model_type is None else f"model_type is {shown(model_type)}, expected a name",
            file=config.file,
            hint='pass config_kwargs={"model_type": "llama"} or the like',
        )
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ConfigError(f"architectures is {shown(architectures)}, expected a list of names", file=config.file)
    saved_as_decoder = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    whole = bool(config.get("is_encoder_decoder")) and not saved_as_decoder
    if whole and not encoder_decoder:
        logger.info("%s is an encoder-decoder (%s): loaded as one", model_type, ", ".join(architectures))
    try:
        family = find_family(model_type, encoder_decoder=encoder_decoder or whole)
    except UnsupportedModelError as error:
        code = ", and the repository's own code for it is never run" if "auto_map" in config else ""
        problem = f"{error.problem}{_around(config)}{code}"
        raise UnsupportedModelError(problem, file=config.file, hint=error.hint) from None
    if "auto_map" in config:
        logger.info("%s brings code of its own (auto_map): not run, our %s is used", config.file, model_type)
    return family


def _around(config: HFConfig) -> str:
    """Returns a note for errors about an unknown multimodal model that says what its language model is."""
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, HFConfig) else None
    return "" if inner is None else f" (multimodal, around {shown(inner)})"
