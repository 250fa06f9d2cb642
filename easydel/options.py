"""The arguments of a load, checked together and converted to the form that its steps take."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from easydel.arguments import (
    AXIS_DIMS,
    CPU,
    Checks,
    batch_and_length,
    check_bits,
    check_rules,
    check_targets,
    device_of,
    mapping_of,
    mesh_of,
    path_of,
    patterns_of,
    precision_of,
    remat_of,
    resolved_axes,
    tuple_of,
)
from easydel.config import HFConfig
from easydel.errors import ArgumentError
from easydel.families import Family
from easydel.hub import fetch, stream
from easydel.hub.adapters import located
from easydel.inputs import check_flags
from easydel.policy import Policy, float_dtype
from easydel.quantize import Int4, Int8
from easydel.sharding import PartitionAxis, Rules
from easydel.sharding.axes import AXES
from easydel.sharding.placement import Placement, flat_functions

if TYPE_CHECKING:  # it imports huggingface_hub
    from easydel.hub.streamed import Streamed

logger = logging.getLogger(__name__)
AUTO = "auto"  # the checkpoint's own dtype
HUB_FLAGS = ("local_files_only", "force_download")
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", *HUB_FLAGS)
CHECKPOINTING = "gradient_checkpointing"
# What those who know transformers' arguments are looking for.
ELSEWHERE = {
    "torch_dtype": 'pass dtype (of the computation) and param_dtype (of what is stored); both may be "auto"',
    "device_map": "pass auto_shard_params=True to split the model over all devices, or device=",
    "max_memory": "pass auto_shard_params=True to split the model over all devices",
    "attn_implementation": "leave attn_implementation out: kernels are chosen by themselves",
    "low_cpu_mem_usage": "leave low_cpu_mem_usage out: no more than a part is ever in memory twice",
    "use_safetensors": "leave use_safetensors out: they are preferred where there are any",
    "quantization_config": "pass load_in_8bit=True or load_in_4bit=True",
    "gguf_file": "pass the path of the GGUF file in place of the name",
    "use_auth_token": "pass token=",
    "tp_plan": "pass auto_shard_params=True and sharding_axis_dims, such as (1, 1, -1, 1)",
    "offload_folder": "leave offload_folder out: weights are mapped, and read once",
    "state_dict": "pass a directory or a file",
    "output_loading_info": "leave output_loading_info out: model.load_report tells what was read",
    "proxies": "set HTTPS_PROXY",
    "resume_download": "leave resume_download out: downloads always go on",
    CHECKPOINTING: "pass remat=True",
    "trust_remote_code": "leave trust_remote_code out: code in a repository is never run here",
}


@dataclass(frozen=True)
class Reading:
    """Options of reading weights and of reporting on it, once everything is planned."""

    progress: bool | None = None
    donatable: bool = False
    allow_nonfinite: bool = False
    verbose: bool = False
    while_loading: Callable[[Any, Any], object] | None = None


@dataclass(frozen=True)
class LoadOptions:
    """All arguments of `from_pretrained` besides the name, checked. `LoadOptions.of` makes them from the arguments.

    `hub` holds the Hub's options, and `more` the arguments that have to be keys of the config.
    """

    policy: Policy
    placement: Placement
    quantize: Int8 | Int4 | None = None
    dequantize: bool | None = None
    from_torch: bool = True
    stream: bool = False
    adapter: str | PathLike[str] | None = None
    ignore: tuple[str, ...] = ()
    follow_links: bool = False
    hub: Mapping[str, Any] = field(default_factory=dict)
    config_kwargs: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, int] = (1, 1)
    reading: Reading = field(default_factory=Reading)
    compilation_cache: bool = True
    default_device: bool = True
    as_stored: tuple[str, ...] = ()
    """Fields of the policy that are the checkpoint's own dtype, once that is known."""

    @classmethod
    def of(
        cls,
        *,
        device: Any = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        precision: jax.lax.PrecisionLike = jax.lax.Precision("fastest"),  # noqa: B008 (an enum member)
        sharding_axis_dims: Sequence[int] = AXIS_DIMS,
        sharding_axis_names: Sequence[str] = AXES,
        partition_axis: PartitionAxis = PartitionAxis(),  # noqa: B008 (frozen)
        shard_attention_computation: bool = True,
        input_shape: tuple[int, int] = (1, 1),
        shard_fns: Mapping[Any, Any] | None = None,
        backend: str | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        auto_shard_params: bool = False,
        partition_rules: Rules | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        dequantize: bool | None = None,
        bit_targeted_params: Sequence[str] | None = None,
        verbose_params: bool = False,
        from_torch: bool = True,
        scan_layers: bool = False,
        stream: bool = False,
        adapter: str | PathLike[str] | None = None,
        ignore: Sequence[str] = (),
        follow_links: bool = False,
        remat: bool | str | None = None,
        progress: bool | None = None,
        donatable: bool = False,
        allow_nonfinite: bool = False,
        compilation_cache: bool = True,
        while_loading: Callable[[Any, Any], object] | None = None,
        **kwargs: Any,
    ) -> LoadOptions:
        """Returns the options for the arguments of `AutoEasyDeLModelForCausalLM.from_pretrained`, which explains them.

        Raises one error that lists everything that is wrong with the arguments. `configured` checks arguments that have
        to be keys of the config.
        """
        check = Checks()
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        check(
            check_flags,
            shard_attention_computation=shard_attention_computation,
            auto_shard_params=auto_shard_params,
            load_in_8bit=load_in_8bit,
            load_in_4bit=load_in_4bit,
            dequantize=False if dequantize is None else dequantize,
            verbose_params=verbose_params,
            from_torch=from_torch,
            scan_layers=scan_layers,
            stream=stream,
            follow_links=follow_links,
            progress=False if progress is None else progress,
            donatable=donatable,
            allow_nonfinite=allow_nonfinite,
            compilation_cache=compilation_cache,
            **{name: hub[name] for name in HUB_FLAGS if name in hub},
        )
        check(check_bits, load_in_8bit, load_in_4bit, dequantize)
        check(check_targets, bit_targeted_params, load_in_8bit or load_in_4bit)
        check(check_rules, partition_rules, auto_shard_params)
        overrides = check(mapping_of, "config_kwargs", config_kwargs)
        given = check(mapping_of, "shard_fns", shard_fns)
        functions = check(flat_functions, {} if auto_shard_params else given)
        home = check(device_of, device)
        dims = check(tuple_of, "sharding_axis_dims", sharding_axis_dims)
        names = check(tuple_of, "sharding_axis_names", sharding_axis_names)
        traced = check(batch_and_length, check(tuple_of, "input_shape", input_shape))
        adapters = check(path_of, "adapter", adapter)
        left_out = check(patterns_of, "ignore", ignore)
        used = bool(auto_shard_params) or shard_fns is not None
        mesh = check(mesh_of, dims, names, backend, used=used)
        axes = check(resolved_axes, partition_axis, names)
        given_dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        as_stored = tuple(name for name, value in given_dtypes.items() if isinstance(value, str) and value == AUTO)
        numbers = {
            **{
                name: check(float_dtype, name, jnp.float32 if name in as_stored else value)
                for name, value in given_dtypes.items()
            },
            "precision": check(precision_of, precision),
            "remat": check(remat_of, remat),
        }
        check.refuse()
        if auto_shard_params and shard_fns is not None:
            warnings.warn("auto_shard_params=True places every parameter; shard_fns is ignored", stacklevel=3)
        return cls(
            policy=Policy(
                mesh=mesh if used else None,
                axes=axes,
                shard_attention=shard_attention_computation,
                scan_layers=scan_layers,
                **numbers,
            ),
            placement=Placement.by_rules(mesh, axes, partition_rules)
            if auto_shard_params
            else Placement.on_device(home, functions),
            quantize=Int8(bit_targeted_params) if load_in_8bit else Int4(bit_targeted_params) if load_in_4bit else None,
            dequantize=dequantize,
            from_torch=from_torch,
            stream=stream,
            adapter=adapters,
            ignore=left_out,
            follow_links=follow_links,
            hub=hub,
            config_kwargs=overrides,
            more=kwargs,
            input_shape=traced,
            reading=Reading(progress, donatable, allow_nonfinite, verbose_params, while_loading),
            compilation_cache=compilation_cache,
            default_device=device is None,
            as_stored=as_stored,
        )

    def settled(self, stored: jnp.dtype) -> LoadOptions:
        """Returns the options with the checkpoint's dtype where "auto" was asked for."""
        return replace(self, policy=replace(self.policy, **dict.fromkeys(self.as_stored, stored)))

    def tell_unused(self) -> None:
        """Logs a line if accelerators stay unused, or devices beside those of the mesh."""
        mesh, devices = self.policy.mesh, jax.devices()
        if mesh is not None and mesh.size < (count := jax.device_count(mesh.devices.flat[0].platform)):
            logger.warning("the mesh has %d of %d devices: the others stay unused", mesh.size, count)
        elif mesh is None and self.default_device and devices[0].platform != CPU:
            logger.warning(
                "the model goes to the CPU, and %d x %s stay unused: pass auto_shard_params=True, or device=%s",
                *(len(devices), devices[0].device_kind, "jax.devices()[0]"),
            )

    def obtain(self, name: str | Path) -> tuple[Path | Streamed, Path | None]:
        """Returns the files of a model, and the directory of the adapters for it, if there are any.

        Files are local, or with `stream` a repository whose weights stay on the Hub.
        """
        return located(name, self.adapter, stream if self.stream else fetch, self.hub)

    def configured(self, family: Family, config: HFConfig) -> HFConfig:
        """Returns the config with its overrides. Raises ArgumentError for arguments that are unknown to it too."""
        own = _known_keys(self.config_kwargs, config, family)
        return family.configured(config, {**own, **_known(self.more, config, family)})


def _known(kwargs: Mapping[str, Any], config: HFConfig, family: Family) -> Mapping[str, Any]:
    """The further arguments, if all are keys of the config; those of transformers mean what `ELSEWHERE` says."""
    known = {key for key in kwargs if key in config or family.knows(key)} - ELSEWHERE.keys()
    if unknown := sorted(set(kwargs) - known):
        hints = [f"neither a Hub option ({', '.join(HUB_OPTIONS)}) nor a key of the config", *map(_meant, unknown)]
        raise ArgumentError(f"unknown arguments {unknown}", hint="; ".join(filter(None, hints)))
    return kwargs


def _known_keys(given: Mapping[str, Any], config: HFConfig, family: Family) -> Mapping[str, Any]:
    """`config_kwargs`, if all are keys of the config."""
    if given.get(CHECKPOINTING):
        raise ArgumentError(f"config_kwargs has {CHECKPOINTING}, which is no setting here", hint=_meant(CHECKPOINTING))
    unknown = [key for key, value in given.items() if value is not None and key not in config and not family.knows(key)]
    if unknown:
        raise ArgumentError(f"config_kwargs has {unknown}, which are no keys of the config")
    return given


def _meant(name: str) -> str | None:
    """What to do instead of an argument that is none."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    close = get_close_matches(name, [*signature(LoadOptions.of).parameters, *HUB_OPTIONS], 1, 0.8)
    return f"did you mean {close[0]}?" if close else None
