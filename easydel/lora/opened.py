"""An adapter's directory as PEFT writes it, opened: its settings, and its tensors by module."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.open import open_checkpoint
from easydel.config import HFConfig
from easydel.errors import ArgumentError, CheckpointError, UnsupportedModelError, listed
from easydel.hub.select import ADAPTER_CONFIG as CONFIG, ADAPTER_WEIGHTS as WEIGHTS
from easydel.lora.forms import EXPERTS
from easydel.lora.record import ALL_LINEAR, LoRA
from easydel.weights.sources import is_number

PREFIX = "base_model.model."
# Settings of PEFT that change the results in a way that is not implemented, unless they are switched off.
OFF: tuple[Any, ...] = (None, False, [], {}, "none")
REFUSED = (
    "use_qalora",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
)
HONOURED = (
    *("r", "lora_alpha", "target_modules", "use_rslora", "lora_dropout", "bias", "use_dora"),
    *("rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"),
)
# Settings that say how the adapters were made or are held; their tensors say the rest.
WITHOUT_EFFECT = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_to_transform"),
    *("layers_pattern", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config"),
    *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "lora_bias"),
    "trainable_token_indices",
)
STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica")  # values of A and B; others change the base model, too
LEAVES = (
    *("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"),
    *("lora_embedding_A", "lora_embedding_B", "token_adapter.trainable_tokens_delta"),
)
_ADAPTED = re.compile(rf"(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\.(?P<leaf>{'|'.join(map(re.escape, LEAVES))})")
_LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")
BASE = "base_model_name_or_path"
logger = logging.getLogger(__name__)


class Site(NamedTuple):
    """An adapted module. `depth` counts the adapters around it: each parameter of experts has its own."""

    module: str
    depth: int = 0


@dataclass(frozen=True)
class AdapterFile:
    """The settings and tensors of a directory. `adapters` are by site and leaf.

    `whole` are tensors that replace the base's, `copies` those that adapted modules had when the file was written.
    """

    file: Path
    lora: LoRA
    tokens: Any
    adapters: Mapping[Site, Mapping[str, Tensor]]
    whole: Mapping[str, Tensor]
    copies: Mapping[str, Tensor]

    def rows_of(self, module: str) -> tuple[int, ...]:
        """Returns the numbers of the rows of an embedding that new vectors are for."""
        found = self.tokens
        if isinstance(found, Mapping):
            found = next((rows for name, rows in found.items() if f".{module}".endswith(f".{name}")), None)
        if not isinstance(found, list) or not all(isinstance(row, int) and row >= 0 for row in found):
            problem = f"trainable_token_indices is {self.tokens!r:.200}, expected row numbers for {module}"
            raise CheckpointError(problem, file=self.file.parent / CONFIG)
        return tuple(found)

    def parameter_of(self, site: Site) -> str | None:
        """Returns which parameter of an experts' module a site adapts: PEFT nests them, the first one innermost."""
        targets = [name.rpartition(".")[2] for name in self.lora.target_parameters]
        order = [name for name in EXPERTS if name in targets]
        depths = sorted((one.depth for one in self.adapters if one.module == site.module), reverse=True)
        return order[depths.index(site.depth)] if len(order) == len(depths) else None


def open_adapters(directory: str | PathLike[str], layers: Sequence[int] | None = None) -> AdapterFile:
    """Opens a directory of PEFT or of `save_adapters`. Raises CheckpointError or UnsupportedModelError.

    `layers` are the numbers in a base's file of the layers that its model has, if these are not all. Adapters of such a
    base are then counted as the model counts; `save_adapters` names no base for them, and counts so itself.
    """
    folder = Path(directory)
    config = folder / CONFIG
    if not config.is_file():
        hint = "is it an adapter's directory? A model is loaded by its own name"
        raise CheckpointError(f"has no {CONFIG}", file=folder, hint=hint)
    lora = read_lora(config)
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"has no {WEIGHTS[0]}", file=folder)
    tensors = dict(open_checkpoint([found]))
    if wrong := [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if not is_number(tensor.dtype)]:
        raise CheckpointError(f"the adapters are no floating-point numbers:{listed(wrong)}", file=found)
    adapters: dict[Site, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = name.removeprefix(PREFIX)
        if match := _ADAPTED.fullmatch(own):
            site = Site(match["module"], match["nested"].count(".base_layer"))
            adapters.setdefault(site, {})[match["leaf"]] = tensor
        else:
            plain = own.replace(".base_layer.", ".")
            (copies if plain != own and own.endswith(".weight") else whole)[plain] = tensor
    values = HFConfig.from_file(config).to_dict()
    opened = AdapterFile(found, lora, values.get("trainable_token_indices"), adapters, whole, copies)
    return opened if layers is None or not values.get(BASE) else _counted_anew(opened, layers)


def _counted_anew(file: AdapterFile, layers: Sequence[int]) -> AdapterFile:
    """Returns the adapters with the numbers that a model has for those `layers` of its base's file."""
    lora = file.lora
    named = [*(key for key, _ in (*lora.rank_pattern, *lora.alpha_pattern)), *lora.target_parameters]
    if by_layer := [name for name in named if re.search(r"\d", name)]:
        problem = f"the adapters have patterns for layers, which this model counts otherwise:{listed(by_layer)}"
        raise UnsupportedModelError(problem, file=file.file)
    lost: list[str] = []
    places = {str(layer): place for place, layer in enumerate(layers)}

    def counted(name: str) -> str:
        layer = _LAYER.search(name)
        if layer is None:
            return name
        if layer[0] not in places:
            lost.append(name)
            return name
        return f"{name[: layer.start()]}{places[layer[0]]}{name[layer.end() :]}"

    adapters = {site._replace(module=counted(site.module)): leaves for site, leaves in file.adapters.items()}
    whole, copies = ({counted(name): tensor for name, tensor in one.items()} for one in (file.whole, file.copies))
    if lost:
        raise CheckpointError(f"the adapters are also for layers that are left out:{listed(lost)}", file=file.file)
    return replace(file, adapters=adapters, whole=whole, copies=copies)


def read_lora(file: Path) -> LoRA:
    """Reads PEFT's adapter_config.json. Raises UnsupportedModelError for features that are not implemented."""
    values = HFConfig.from_file(file).to_dict()
    extra = [f"{key}={values[key]!r}" for key in REFUSED if values.get(key) not in OFF]
    start = values.get("init_lora_weights", True)
    if start not in STARTS:
        extra.append(f"init_lora_weights={start!r} (it changes the base model)")
    if values.get("peft_type", "LORA") != "LORA":
        extra.append(f"peft_type={values['peft_type']!r}")
    if extra:
        raise UnsupportedModelError(f"the adapters need features that are not implemented:{listed(extra)}", file=file)
    known = {*REFUSED, *HONOURED, *WITHOUT_EFFECT}
    if unknown := sorted(key for key, value in values.items() if key not in known and value not in OFF):
        logger.warning("%s: %s are not known here, and left out", file, ", ".join(unknown))
    given = {key: values[key] for key in HONOURED if values.get(key) is not None}
    given["target_modules"] = given.get("target_modules") or ALL_LINEAR
    try:
        return LoRA(**given)
    except (ArgumentError, TypeError) as error:
        raise CheckpointError(str(error), file=file) from None


def values_of(tensor: Tensor) -> np.ndarray:
    """Returns a tensor of the file as float32. Raises CheckpointError for NaN and Inf."""
    values = np.array(tensor.read(), np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError("has values that are NaN or Inf", file=tensor.file, tensor=tensor.name)
    return values
