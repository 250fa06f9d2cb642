"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), with the names and files of PEFT.

An adapted Linear computes y = W x + scale * B A x. Its adapters stand beside its kernel among the model's parameters,
`.../q_proj/lora_A` [r, in] and `.../q_proj/lora_B` [out, r], always in float32; the kernel may be int8. So everything
that takes parameters goes on working: `apply`, `generate`, sharding, scanned layers, training.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from easydel.checkpoint.open import open_checkpoint
from easydel.checkpoint.write import atomic_directory, write_safetensors
from easydel.config import HFConfig
from easydel.errors import ArgumentError, CheckpointError, UnsupportedModelError, listed
from easydel.layers.linear import Linear, contract
from easydel.model import BaseNNXModule
from easydel.tree import Tree, bind, flatten, unflatten
from easydel.weights.expressions import Source, Transpose

LEAVES = ("lora_A", "lora_B")
ALL_LINEAR = "all-linear"  # PEFT's word for all but the head
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Multi-head latent attention multiplies with this kernel itself, an adapter would be passed over.
NOT_CALLED = "kv_b_proj"
# What PEFT can do besides: any value but the ones that switch it off is refused.
OFF: tuple[Any, ...] = (None, False, [], {}, "none")
REFUSED = (
    "bias",
    "use_dora",
    "use_qalora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoRA:
    """Names, meaning and defaults of PEFT's `LoraConfig`; dropout is not implemented, and must be 0.

    `target_modules` is "all-linear" (all but the head), a regular expression for whole names of modules, or a list of
    names or ends of names: ("q_proj", "mlp.down_proj"). The checkpoint's names count, as in PEFT, and ours.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] = ALL_LINEAR
    use_rslora: bool = False
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ArgumentError(f"r={self.r!r}, expected a rank of at least 1")
        if isinstance(self.lora_alpha, bool) or not isinstance(self.lora_alpha, int | float):
            raise ArgumentError(f"lora_alpha={self.lora_alpha!r}, expected a number")
        if self.lora_dropout:
            raise ArgumentError(f"lora_dropout={self.lora_dropout!r} is not implemented", hint="leave it at 0")

    @property
    def scale(self) -> float:
        """alpha / r, with `use_rslora` alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def selects(self, names: Sequence[str]) -> bool:
        """Whether the module with these names (theirs and ours) is a target."""
        if self.target_modules == ALL_LINEAR:
            return "lm_head" not in names
        if isinstance(self.target_modules, str):
            try:
                return any(re.fullmatch(self.target_modules, name) for name in names)
            except re.error as error:
                raise ArgumentError(f"target_modules={self.target_modules!r} is no pattern: {error}") from None
        return any(f".{name}".endswith(f".{target}") for name in names for target in self.target_modules)


class AdaptedLinear(Linear):
    """A Linear with adapters; `base` gives it its parameters, stacked ones for scanned layers included."""

    def __init__(self, base: Linear, lora: LoRA):
        self.kernel = base.kernel
        self.kernel_scale = nnx.data(None) if base.kernel_scale is None else base.kernel_scale
        self.bias = base.bias
        self.policy, self.lora = base.policy, lora
        *layers, out, inputs = base.kernel.get_raw_value().shape
        # float32 whatever the kernel is: they are small, and 16 bits would round updates away
        self.lora_A = nnx.Param(jax.ShapeDtypeStruct((*layers, lora.r, inputs), jnp.float32))
        self.lora_B = nnx.Param(jax.ShapeDtypeStruct((*layers, out, lora.r), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        low = contract(x, self.lora_A[...], self.policy)
        return super().__call__(x) + contract(low, self.lora_B[...], self.policy) * self.lora.scale

    def merged(self, kernel: jax.Array, scales: jax.Array | None, low: jax.Array, high: jax.Array) -> jax.Array:
        """The kernel that does both, in the dtype of float parameters."""
        whole = kernel.astype(jnp.float32) if scales is None else kernel * scales[..., None]
        return (whole + self.lora.scale * (high @ low)).astype(self.policy.param_dtype)


@dataclass(frozen=True)
class Place:
    """A Linear in a model: attribute `name` of `owner`; `paths` are its per-layer paths, `theirs` its names in the
    checkpoint (one for each path, or None where that stores it together with others)."""

    owner: Any
    name: str
    path: str
    paths: tuple[str, ...]
    theirs: tuple[str | None, ...]

    @property
    def module(self) -> Linear:
        return getattr(self.owner, self.name)

    @property
    def inputs(self) -> int:
        return self.module.kernel.get_raw_value().shape[-1]

    @property
    def outputs(self) -> int:
        return self.module.kernel.get_raw_value().shape[-2]

    @property
    def stacked(self) -> bool:
        return self.module.kernel.get_raw_value().ndim == 3

    def arranged(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One array for each of its layers as the parameter that it has."""
        return np.stack(rows) if self.stacked else rows[0]

    def selected(self, lora: LoRA) -> list[bool]:
        """For each of its layers, whether it is a target."""
        pairs = zip(self.paths, self.theirs, strict=True)
        return [lora.selects([name for name in (theirs, path.replace("/", ".")) if name]) for path, theirs in pairs]


def add_adapters(model: BaseNNXModule, lora: LoRA, *, seed: int = 0) -> Tree:
    """Give `model` fresh adapters that change nothing yet (B is 0); its parameters with them.

    Raises ArgumentError if it has some, or if targets name nothing, or what cannot be adapted.
    """
    chosen = _targets(model, lora)
    _adapt(model, lora, chosen)
    arrays = {}
    for place in chosen:
        bound = place.inputs**-0.5  # PEFT's: Kaiming's uniform distribution with a = sqrt(5)
        randoms = [np.random.default_rng([seed, *path.encode()]) for path in place.paths]
        rows = [random.uniform(-bound, bound, (lora.r, place.inputs)).astype(np.float32) for random in randoms]
        arrays[f"{place.path}/lora_A"] = place.arranged(rows)
        arrays[f"{place.path}/lora_B"] = place.arranged([np.zeros((place.outputs, lora.r), np.float32)] * len(rows))
    return _bound(model, chosen, arrays)


def merge_adapters(model: BaseNNXModule, params: Mapping[str, Any] | None = None) -> Tree:
    """Add the adapters of `params` (default: the model's own) to its kernels and remove them; its parameters then.

    int8 kernels that are adapted become floats: rounded to 8 bits again, most of what was learned would be lost.
    """
    leaves = flatten(params or model.params)
    for place in _adapted(model):
        module, path = place.module, place.path
        assert isinstance(module, AdaptedLinear)
        kernel, scales = leaves[f"{path}/kernel"], leaves.pop(f"{path}/kernel_scale", None)
        low, high = (leaves.pop(f"{path}/{leaf}") for leaf in LEAVES)
        leaves[f"{path}/kernel"] = jax.jit(module.merged, out_shardings=kernel.sharding)(kernel, scales, low, high)
        plain = Linear(place.inputs, place.outputs, module.policy, bias=module.bias is not None)
        plain.kernel, plain.bias = module.kernel, module.bias
        setattr(place.owner, place.name, plain)
    return _rebound(model, leaves)


def save_adapters(
    model: BaseNNXModule, directory: str | PathLike[str], params: Mapping[str, Any] | None = None
) -> None:
    """Write the adapters of `params` (default: the model's own) as PEFT does; they load there and here."""
    leaves, adapted = flatten(params or model.params), _adapted(model)
    if not adapted:
        raise ArgumentError("the model has no adapters", hint="add_adapters(model, LoRA(...)) gives it some")
    lora = adapted[0].module.lora  # type: ignore[attr-defined]
    tensors = []
    for place in adapted:
        for leaf in LEAVES:
            array = np.asarray(leaves[f"{place.path}/{leaf}"])
            rows = list(array) if place.stacked else [array]
            for name, row in zip(place.theirs, rows, strict=True):
                tensors.append((f"{PREFIX}{name}.{leaf}.weight", row.shape, row.dtype, lambda row=row: row))
    settings = asdict(lora) | {"target_modules": _shortest(model, adapted), "peft_type": "LORA"}
    settings |= {"task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True, "fan_in_fan_out": False}
    settings["base_model_name_or_path"] = str(model.origin) if model.origin else None
    with atomic_directory(directory, owned=(CONFIG, "adapter_model.*")) as fresh:
        write_safetensors(fresh, tensors, metadata={"format": "pt"})
        (fresh / "model.safetensors").rename(fresh / WEIGHTS)
        (fresh / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def load_adapters(model: BaseNNXModule, directory: str | PathLike[str]) -> Tree:
    """Give `model` the adapters that PEFT, or `save_adapters`, wrote to `directory`; its parameters with them.

    Raises CheckpointError or UnsupportedModelError, before the model changes, for files that are broken, do not fit the
    model, or use what is not implemented.
    """
    folder = Path(directory)
    lora = read_lora(folder / CONFIG)
    found = next((folder / name for name in (WEIGHTS, "adapter_model.bin") if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"has no {WEIGHTS}", file=folder)
    tensors = dict(open_checkpoint([found]))
    by_name = {name: place for place in _places(model) for name in place.theirs if name}
    named = {name: [f"{PREFIX}{name}.{leaf}.weight" for leaf in LEAVES] for name in by_name}
    wanted = {name for name, pair in named.items() if any(tensor in tensors for tensor in pair)}
    chosen = list({place.path: place for name, place in by_name.items() if name in wanted}.values())
    expected: dict[str, tuple[int, ...]] = {}
    for place in chosen:
        for name in place.theirs:
            shapes = ((lora.r, place.inputs), (place.outputs, lora.r))
            expected |= dict(zip(named[name], shapes, strict=True)) if name else {}
    problems = [f"{name} has no place in the model" for name in tensors if name not in expected]
    problems += [f"{name} is missing" for name in expected if name not in tensors]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems or not chosen:
        told = listed(problems) or " it holds none"
        raise CheckpointError(f"the adapters do not fit the model:{told}", file=found, hint="is it another model's?")
    _check_free(model, chosen)
    _adapt(model, lora, chosen)
    arrays = {}
    for place in chosen:
        for number, leaf in enumerate(LEAVES):
            rows = [tensors[named[name][number]].read().astype(np.float32) for name in place.theirs if name]
            arrays[f"{place.path}/{leaf}"] = place.arranged(rows)
    return _bound(model, chosen, arrays)


def read_lora(file: Path) -> LoRA:
    """PEFT's adapter_config.json. UnsupportedModelError for what else PEFT can do; dropout is told and left out."""
    config = HFConfig.from_file(file)
    values = config.to_dict()
    extra = [f"{key}={values[key]!r}" for key in REFUSED if values.get(key) not in OFF]
    start = values.get("init_lora_weights", True)
    if start not in (True, False, "gaussian"):
        extra.append(f"init_lora_weights={start!r} (it changes the base model)")
    if values.get("peft_type", "LORA") != "LORA":
        extra.append(f"peft_type={values['peft_type']!r}")
    if extra:
        raise UnsupportedModelError(f"the adapters need what is not implemented:{listed(extra)}", file=file)
    if values.get("lora_dropout"):
        logger.warning("%s: lora_dropout=%s is not implemented: trained on without", file, values["lora_dropout"])
    known = {key: values[key] for key in ("r", "lora_alpha", "use_rslora") if values.get(key) is not None}
    targets = values.get("target_modules") or ALL_LINEAR
    try:
        return LoRA(**known, target_modules=targets)
    except (ArgumentError, TypeError) as error:
        raise CheckpointError(str(error), file=file) from None


def _targets(model: BaseNNXModule, lora: LoRA) -> list[Place]:
    places = _places(model)
    chosen = [place for place in places if any(place.selected(lora))]
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    idle = [
        target
        for target in targets
        if not any(any(place.selected(replace(lora, target_modules=_one(lora, target)))) for place in places)
    ]
    if idle or not chosen:
        leaves = ", ".join(sorted({place.name for place in places}))
        raise ArgumentError(f"target_modules {idle} name no Linear", hint=f"{leaves} are those of this model")
    parts = [place.path for place in chosen if not all(place.selected(lora))]
    if parts:
        raise ArgumentError(
            f"scanned layers cannot be adapted in part:{listed(parts)}", hint="load without scan_layers"
        )
    _check_free(model, chosen)
    return chosen


def _one(lora: LoRA, target: str) -> str | tuple[str, ...]:
    return target if isinstance(lora.target_modules, str) else (target,)


def _check_free(model: BaseNNXModule, chosen: Sequence[Place]) -> None:
    """ArgumentError if the model is adapted already, UnsupportedModelError for what no adapter can stand beside."""
    if _adapted(model):
        raise ArgumentError("the model has adapters already", hint="merge_adapters(model) makes room for others")
    fused = [place.path for place in chosen if None in place.theirs]
    direct = [place.path for place in chosen if place.name == NOT_CALLED]
    problems = [f"{path}: the checkpoint stores it in one tensor with others" for path in fused]
    problems += [f"{path}: attention uses its kernel directly" for path in direct]
    if problems:
        raise UnsupportedModelError(
            f"these cannot have adapters:{listed(problems)}", hint="choose other target_modules"
        )


def _places(model: BaseNNXModule) -> list[Place]:
    """Every Linear of the model."""
    layer_paths, shapes = model.canonical_paths(), flatten(model.params)
    per_layer = {
        part: shapes[path].shape if parts == [path] else shapes[path].shape[1:]
        for path, parts in layer_paths.items()
        for part in parts
    }

    def theirs(path: str) -> str | None:
        expression = model.names.expression(f"{path}/kernel", per_layer)
        expression = expression.of if isinstance(expression, Transpose) else expression
        return expression.name.removesuffix(".weight") if isinstance(expression, Source) else None

    places = []
    for owner, name, path in _linears(model, ""):
        paths = tuple(part.removesuffix("/kernel") for part in layer_paths[f"{path}/kernel"])
        places.append(Place(owner, name, path, paths, tuple(map(theirs, paths))))
    return places


def _linears(module: Any, prefix: str) -> Iterator[tuple[Any, str, str]]:
    children = enumerate(module) if isinstance(module, nnx.List) else list(vars(module).items())
    for name, child in children:
        if isinstance(child, Linear):
            yield module, str(name), f"{prefix}{name}"
        elif isinstance(child, nnx.Module | nnx.List) and not str(name).startswith("_"):
            yield from _linears(child, f"{prefix}{name}/")


def _adapted(model: BaseNNXModule) -> list[Place]:
    return [place for place in _places(model) if isinstance(place.module, AdaptedLinear)]


def _adapt(model: BaseNNXModule, lora: LoRA, chosen: Sequence[Place]) -> None:
    for place in chosen:
        setattr(place.owner, place.name, AdaptedLinear(place.module, lora))
    model.forget_compiled()


def _bound(model: BaseNNXModule, chosen: Sequence[Place], arrays: Mapping[str, np.ndarray]) -> Tree:
    """The model's parameters with `arrays` for adapters, whole on every device that has a part of the kernel."""
    leaves = flatten(model.params)
    for place in chosen:
        sharding = leaves[f"{place.path}/kernel"].sharding
        whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
        for leaf in LEAVES:
            path = f"{place.path}/{leaf}"
            leaves[path] = jax.jit(jnp.copy, out_shardings=whole)(arrays[path])  # JAX's own memory: it is donated
    return _rebound(model, leaves)


def _rebound(model: BaseNNXModule, leaves: Mapping[str, Any]) -> Tree:
    params = unflatten(leaves)
    bind(model, params)
    model.forget_compiled()
    return params


def _shortest(model: BaseNNXModule, adapted: Sequence[Place]) -> list[str]:
    """Their last names if those select no other Linear, else their whole names."""
    whole = sorted(name for place in adapted for name in place.theirs if name)
    last = sorted({name.rpartition(".")[2] for name in whole})
    every = [name for place in _places(model) for name in place.theirs if name]
    selected = [name for name in every if name.rpartition(".")[2] in last]
    return last if sorted(selected) == whole else whole
