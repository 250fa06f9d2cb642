"""The one call: from a name on the Hub, or a path, to a model in JAX."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from easydel.compilation import use_compilation_cache
from easydel.config import HFConfig, shown
from easydel.errors import ArgumentError, ConfigError, UnsupportedModelError
from easydel.families import Family, find_family
from easydel.hub import fetch
from easydel.hub.adapters import has_tokenizer
from easydel.initial import STD, initialise
from easydel.loading import build_model, check_heads_of, load_weights
from easydel.lora.onto import with_adapters
from easydel.lora.opened import open_adapters
from easydel.model import BaseNNXModule
from easydel.options import HUB_OPTIONS, LoadOptions
from easydel.prepare import trace
from easydel.processes import one_outcome
from easydel.sharding import PartitionAxis, Rules
from easydel.source import language_model, open_source, read_config, stored_dtype
from easydel.tree import Tree

# Arguments of `from_pretrained` that say how a checkpoint is read.
OF_CHECKPOINTS = {
    *("load_in_8bit", "bit_targeted_params", "verbose_params", "from_torch", "stream", "adapter", "progress"),
    *("load_in_4bit", "dequantize", "donatable", "allow_nonfinite", "while_loading", "ignore", "follow_links"),
}
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
        adapter: str | Path | None = None,
        ignore: Sequence[str] = (),
        follow_links: bool = False,
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
            pretrained_model_name_or_path: Hub id, local directory, or one .safetensors, .gguf or .bin file; or the
                directory or Hub id of adapters.
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
            from_torch: False if the directory or repository has to be one that `save_pretrained` of this project wrote;
                these are recognised in any case.
            load_in_4bit: store kernels as int4 with a scale per 64 numbers of a row, embeddings and the head as int8.
            dequantize: True makes floats of `param_dtype` of weights that the checkpoint has quantized, False leaves
                them at their own bits wherever the model can hold them so. Default: True for GGUF files, else False.
            scan_layers: store equal layers stacked and run them by `jax.lax.scan`: compiles faster.
            stream: do not download weights: each process receives its own bytes by HTTP ranges, straight into memory.
                Safetensors only; local paths are loaded as without it.
            adapter: directory or Hub id of adapters (LoRA) as PEFT writes them, which are added to the weights while
                these are read. If `pretrained_model_name_or_path` is one, the model that it names is loaded.
            ignore: regular expressions for whole names of tensors to leave out, of those that the model has no place
                for, such as the value head of TRL: ["v_head.*"]. Any other such tensor is an error.
            follow_links: read a local directory's files also where they are links that lead out of it.
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
            files, adapters = options.obtain(pretrained_model_name_or_path)
            source = language_model(open_source(files, saved=not options.from_torch, follow_links=options.follow_links))
            check_dtype(source.config)
            options = options.settled(stored_dtype(source))
            family = choose_family(source.config, encoder_decoder=cls.encoder_decoder)
            config = options.configured(family, source.config)
            build = partial(build_model, family, config, options.policy, dequantize=options.dequantize)
            model = build(source)
            if adapters is not None:
                source = with_adapters(source, model, open_adapters(adapters, source.layers))
                model = build(source)  # a tied head may have become another
                model.merged = True
                model.tokenizer_origin = adapters if has_tokenizer(adapters) else model.origin
            params = load_weights(model, source, options, check_others)
        return model, params

    @classmethod
    def from_config(
        cls, config: HFConfig | Mapping[str, Any] | str | Path, *, seed: int = 0, **arguments: Any
    ) -> tuple[BaseNNXModule, Tree]:
        """Makes a model with random parameters, to be trained from nothing. Returns it, and its parameters.

        Matrices are normal with the config's initializer_range (or 0.02), norms 1, biases 0; the mesh changes nothing.

        Args:
            config: the keys of a config.json, or the Hub id or path of one.
            seed: of the random numbers.
            **arguments: those of `from_pretrained` that do not concern a checkpoint.

        Raises:
            EasyDeLError: ArgumentError, ConfigError, UnsupportedModelError, ShardingError, HubError.
        """
        if unknown := sorted(arguments.keys() & OF_CHECKPOINTS):
            raise ArgumentError(f"{', '.join(unknown)} concern checkpoints, and from_config reads none")
        options = LoadOptions.of(**arguments)
        if isinstance(config, str | Path):
            config = read_config(fetch(config, weights=False, **options.hub))
        known = config if isinstance(config, HFConfig) else HFConfig(config)
        family = choose_family(known, encoder_decoder=cls.encoder_decoder)
        known = options.configured(family, known)
        record, names = family.record(known)
        model = BaseNNXModule(record, known, options.policy, names)
        if options.policy.mesh is not None:
            check_heads_of(model, options.policy.mesh)
        trace(model, options.input_shape)
        deviation = known.get("initializer_range", STD)
        if isinstance(deviation, bool) or not isinstance(deviation, int | float) or not deviation >= 0:
            raise ConfigError(f"initializer_range is {shown(deviation)}, expected 0 or more", file=known.file)
        return model, initialise(model, options.placement, seed=seed, std=float(deviation))


class AutoEasyDeLModelForSeq2SeqLM(AutoEasyDeLModelForCausalLM):
    """A loader of encoder-decoder models by name (BART, T5), with the same arguments."""

    encoder_decoder = True


def check_dtype(config: HFConfig) -> None:
    """Raises ConfigError if the dtype that a config names is none."""
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if value is None or value == "auto" or isinstance(value, Mapping):
            continue
        try:
            jnp.dtype(value.removeprefix("torch."))
        except (AttributeError, TypeError):
            hint = f'it decides nothing here: config_kwargs={{"{key}": "float32"}} overrides it'
            raise ConfigError(
                f"{key} is {shown(value)}, expected the name of a dtype", file=config.file, hint=hint
            ) from None


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
