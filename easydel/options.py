"""The arguments of a load, checked together and put in the form that its steps take."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from easydel.config import HFConfig
from easydel.errors import ArgumentError, EasyDeLError, listed
from easydel.families import Family
from easydel.hub import fetch, stream
from easydel.inputs import check_flags
from easydel.policy import REMAT, REMAT_POLICIES, Policy, float_dtype
from easydel.quantize import Int8
from easydel.sharding import PartitionAxis, Rules, make_mesh
from easydel.sharding.axes import AXES
from easydel.sharding.placement import Placement, flat_functions

if TYPE_CHECKING:  # it imports huggingface_hub
    from easydel.hub.streamed import Streamed

HUB_FLAGS = ("local_files_only", "force_download")
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", *HUB_FLAGS)
CHECKPOINTING = "gradient_checkpointing"
# What those who know transformers' arguments are looking for.
ELSEWHERE = {
    "torch_dtype": "pass dtype (of the computation) and param_dtype (of what is stored)",
    "device_map": "pass auto_shard_params=True to split the model over all devices, or device=",
    "max_memory": "pass auto_shard_params=True to split the model over all devices",
    "attn_implementation": "leave attn_implementation out: kernels are chosen by themselves",
    "low_cpu_mem_usage": "leave low_cpu_mem_usage out: no more than a part is ever in memory twice",
    "use_safetensors": "leave use_safetensors out: they are preferred where there are any",
    "quantization_config": "pass load_in_8bit=True",
    "load_in_4bit": "pass load_in_8bit=True",
    "gguf_file": "pass the path of the GGUF file in place of the name",
    "use_auth_token": "pass token=",
    CHECKPOINTING: "pass remat=True",
    "trust_remote_code": "leave trust_remote_code out: code in a repository is never run here",
}
CPU = "cpu"
AXIS_DIMS = (1, -1, 1, 1)
FAILED: Any = object()  # stands for what could not be made of an argument
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """How weights are read, and what is told of it, once everything is planned."""

    progress: bool | None = None
    donatable: bool = False
    allow_nonfinite: bool = False
    verbose: bool = False
    while_loading: Callable[[Any, Any], object] | None = None


@dataclass(frozen=True)
class LoadOptions:
    """What `from_pretrained` was asked for besides the name; `LoadOptions.of` makes one of its arguments.

    `hub` and `more` are its other arguments: the Hub's options, and what has to be a key of the config.
    """

    policy: Policy
    placement: Placement
    int8: Int8 | None = None
    from_torch: bool = True
    stream: bool = False
    hub: Mapping[str, Any] = field(default_factory=dict)
    config_kwargs: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, int] = (1, 1)
    reading: Reading = field(default_factory=Reading)
    compilation_cache: bool = True

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
        bit_targeted_params: Sequence[str] | None = None,
        verbose_params: bool = False,
        from_torch: bool = True,
        scan_layers: bool = False,
        stream: bool = False,
        remat: bool | str | None = None,
        progress: bool | None = None,
        donatable: bool = False,
        allow_nonfinite: bool = False,
        compilation_cache: bool = True,
        while_loading: Callable[[Any, Any], object] | None = None,
        **kwargs: Any,
    ) -> LoadOptions:
        """The arguments of `AutoEasyDeLModelForCausalLM.from_pretrained`, which says what they mean.

        Raises one error that lists everything that is wrong with them. What has to be a key of the config is checked by
        `configured`.
        """
        check = Checks()
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        check(
            check_flags,
            shard_attention_computation=shard_attention_computation,
            auto_shard_params=auto_shard_params,
            load_in_8bit=load_in_8bit,
            verbose_params=verbose_params,
            from_torch=from_torch,
            scan_layers=scan_layers,
            stream=stream,
            progress=False if progress is None else progress,
            donatable=donatable,
            allow_nonfinite=allow_nonfinite,
            compilation_cache=compilation_cache,
            **{name: hub[name] for name in HUB_FLAGS if name in hub},
        )
        check(_check_targets, bit_targeted_params, load_in_8bit)
        check(_check_rules, partition_rules, auto_shard_params)
        overrides = check(_mapping, "config_kwargs", config_kwargs)
        given = check(_mapping, "shard_fns", shard_fns)
        functions = check(flat_functions, {} if auto_shard_params else given)
        home = check(_device, device)
        dims = check(_tuple, "sharding_axis_dims", sharding_axis_dims)
        names = check(_tuple, "sharding_axis_names", sharding_axis_names)
        traced = check(_batch_and_length, check(_tuple, "input_shape", input_shape))
        used = bool(auto_shard_params) or shard_fns is not None
        mesh = check(_mesh, dims, names, backend, used=used)
        axes = check(_resolved, partition_axis, names)
        numbers = {
            "dtype": check(float_dtype, "dtype", dtype),
            "param_dtype": check(float_dtype, "param_dtype", param_dtype),
            "precision": check(_precision, precision),
            "remat": check(_remat, remat),
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
            int8=Int8(bit_targeted_params) if load_in_8bit else None,
            from_torch=from_torch,
            stream=stream,
            hub=hub,
            config_kwargs=overrides,
            more=kwargs,
            input_shape=traced,
            reading=Reading(progress, donatable, allow_nonfinite, verbose_params, while_loading),
            compilation_cache=compilation_cache,
        )

    def obtain(self, name: str | Path) -> Path | Streamed:
        """The local files of a Hub id or path, or with `stream` the repository whose weights stay where they are."""
        return (stream if self.stream else fetch)(name, **self.hub)

    def configured(self, family: Family, config: HFConfig) -> HFConfig:
        """The config with what overrides it; ArgumentError for arguments that nobody knows."""
        own = _known_keys(self.config_kwargs, config, family)
        return family.configured(config, {**own, **_known(self.more, config, family)})


class Checks:
    """Calls that may refuse an argument, all made before one error tells of every refusal."""

    def __init__(self) -> None:
        self.errors: list[EasyDeLError] = []

    def __call__(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """The result of `function`; `FAILED` if it refuses, or is to be given what failed before."""
        if any(argument is FAILED for argument in arguments):
            return FAILED
        try:
            return function(*arguments, **options)
        except EasyDeLError as error:
            self.errors.append(error)
            return FAILED

    def refuse(self) -> None:
        """Raises the one error as it is, or an ArgumentError that lists several."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            problems = [str(error) for error in self.errors]
            raise ArgumentError(f"the arguments have {len(problems)} problems:{listed(problems)}")


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


def _check_targets(targets: Any, load_in_8bit: bool) -> None:
    if targets is None:
        return
    if not load_in_8bit:
        raise ArgumentError("bit_targeted_params has no effect without load_in_8bit=True")
    names = isinstance(targets, Sequence | Set) and not isinstance(targets, str)
    if not (names and targets and all(isinstance(name, str) for name in targets)):
        raise ArgumentError(f"bit_targeted_params={targets!r}, expected a list of names, or None for all")


def _check_rules(rules: Any, auto_shard_params: bool) -> None:
    if rules is not None and not auto_shard_params:
        raise ArgumentError("partition_rules has no effect without auto_shard_params=True")


def _mapping(name: str, value: Any) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} is a {type(value).__name__}, expected a dict")
    return value


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ArgumentError(f"{name}={value!r}, expected a tuple")
    return tuple(value)


def _batch_and_length(shape: tuple[Any, ...]) -> tuple[int, int]:
    if len(shape) != 2 or any(type(dim) is not int or dim < 1 for dim in shape):
        raise ArgumentError(f"input_shape={shape!r}, expected (batch, length), both at least 1")
    return cast(tuple[int, int], shape)


def _device(device: Any) -> Any:
    if device is None:
        return jax.local_devices(backend=CPU)[0]
    if not isinstance(device, jax.Device):
        raise ArgumentError(f"device={device!r}, expected a device", hint='jax.devices("cpu")[0] is one')
    return device


def _mesh(dims: tuple[Any, ...], names: tuple[Any, ...], backend: str | None, *, used: bool) -> jax.sharding.Mesh:
    """The mesh of that shape; ArgumentError if somebody asks for one of several devices that nothing uses."""
    mesh = make_mesh(dims, names, backend)
    if not used and mesh.size > 1 and dims != AXIS_DIMS:
        problem = f"sharding_axis_dims={dims} has no effect"
        raise ArgumentError(problem, hint="pass auto_shard_params=True or shard_fns")
    return mesh


def _resolved(axes: Any, names: tuple[Any, ...]) -> PartitionAxis:
    if not isinstance(axes, PartitionAxis):
        raise ArgumentError(f"partition_axis is a {type(axes).__name__}, expected a PartitionAxis")
    return axes.resolve(names)


def _precision(value: Any) -> Any:
    try:
        return None if value is None else jax.lax.Precision(value)
    except ValueError:
        choices = "fastest (default), high, highest"
        raise ArgumentError(f"precision={value!r} is not known", hint=f"use one of {choices}") from None


def _remat(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_) or value is None:
        return REMAT if value else None
    if value not in (REMAT, *REMAT_POLICIES):
        raise ArgumentError(f"remat={value!r} is not known", hint=f"use True, or {', '.join(REMAT_POLICIES)}")
    return value
