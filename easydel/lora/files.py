"""Adapters in files, in PEFT's format."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.open import open_checkpoint
from easydel.checkpoint.write import atomic_directory, write_safetensors
from easydel.config import HFConfig
from easydel.errors import ArgumentError, CheckpointError, UnsupportedModelError, listed
from easydel.families import find_family
from easydel.lora.fit import check_copies, check_fit, tensor_names
from easydel.lora.linear import ALL_LINEAR, LoRA
from easydel.lora.places import Place, adapt, adapted_places, check_free, give, places_of
from easydel.module import LanguageModel
from easydel.tree import ADAPTERS, Tree, flatten
from easydel.weights.export import Entry, on_host, write_whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Other settings of PEFT: any value except those that switch a setting off is refused.
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
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
)
STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica")  # values of A and B; others change the base model, too
logger = logging.getLogger(__name__)


def save_adapters(
    model: LanguageModel, directory: str | PathLike[str], params: Mapping[str, Any] | None = None
) -> None:
    """Writes the adapters of `params` (default: the model's own) as PEFT does; they load in PEFT and here.

    Warns of adapters that PEFT has no place for. If parameters are spread over processes, every process has to call
    this, and the first one writes.
    """
    leaves, adapted = flatten(params or model.params), adapted_places(model)
    if not adapted:
        raise ArgumentError("the model has no adapters", hint="add_adapters(model, LoRA(...)) gives it some")
    lora = adapted[0].module.lora  # type: ignore[attr-defined]
    tensors: list[Entry] = []
    for place in adapted:
        for number, leaf in enumerate(ADAPTERS):
            array = leaves[f"{place.path}/{leaf}"]
            shape, rows = (array.shape[1:], range(len(array))) if place.stacked else (array.shape, [None])
            for name, row in zip(place.theirs, rows, strict=True):
                assert name, "what has no name of its own is never adapted"
                values = partial(on_host, array, row)
                tensors.append((tensor_names(name)[number], shape, np.dtype(array.dtype), values))
    settings = asdict(lora) | {"target_modules": _shortest(model, adapted), "peft_type": "LORA"}
    task = "SEQ_2_SEQ_LM" if model.record.has_encoder else "CAUSAL_LM"
    settings |= {"task_type": task, "bias": "none", "inference_mode": True, "fan_in_fan_out": False}
    settings["base_model_name_or_path"] = str(model.origin) if model.origin else None

    _warn_of_peft(model, adapted)

    def write(tensors: Sequence[Entry]) -> None:
        with atomic_directory(directory, owned=(CONFIG, "adapter_model.*")) as fresh:
            write_safetensors(fresh, tensors, metadata={"format": "pt"})
            (fresh / "model.safetensors").rename(fresh / WEIGHTS)
            (fresh / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")

    write_whole(leaves, tensors, write)


def _warn_of_peft(model: LanguageModel, adapted: Sequence[Place]) -> None:
    """Warns of adapters that PEFT would lose or refuse."""
    names = [name for place in adapted for name in place.theirs if name]
    model_type = model.config.get("model_type")
    lost = () if model_type is None else find_family(model_type).peft_lacks
    if told := [name for name in names if name.rpartition(".")[2] in lost]:
        warnings.warn(
            f"PEFT does not load the adapters of these modules (load_adapters does):{listed(told)}", stacklevel=3
        )


def load_adapters(model: LanguageModel, directory: str | PathLike[str]) -> Tree:
    """Gives `model` the adapters that PEFT, or `save_adapters`, wrote to `directory`. Returns its parameters with them.

    Raises CheckpointError or UnsupportedModelError, before the model changes, for files that are broken, do not fit the
    model, or need features that are not implemented.
    """
    folder = Path(directory)
    lora = read_lora(folder / CONFIG)
    found = next((folder / name for name in (WEIGHTS, "adapter_model.bin") if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"has no {WEIGHTS}", file=folder)
    tensors = dict(open_checkpoint([found]))
    places = {name: place for place in places_of(model) for name in place.theirs if name}
    places = {name: place for name, place in places.items() if any(tensor in tensors for tensor in tensor_names(name))}
    check_fit(model, lora, places, tensors, found)
    chosen = list({place.path: place for place in places.values()}.values())
    check_free(model, chosen)
    check_copies(model, places, tensors)
    arrays = {
        f"{place.path}/{leaf}": place.arranged(
            [_values(tensors[tensor_names(name)[number]], found) for name in place.theirs if name]
        )
        for place in chosen
        for number, leaf in enumerate(ADAPTERS)
    }
    adapt(model, lora, chosen)
    return give(model, chosen, arrays)


def _values(tensor: Tensor, file: Path) -> np.ndarray:
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError("has values that are NaN or Inf", file=file, tensor=tensor.name)
    return values


def read_lora(file: Path) -> LoRA:
    """Reads PEFT's adapter_config.json. Raises UnsupportedModelError for other features; dropout is only logged."""
    config = HFConfig.from_file(file)
    values = config.to_dict()
    extra = [f"{key}={values[key]!r}" for key in REFUSED if values.get(key) not in OFF]
    start = values.get("init_lora_weights", True)
    if start not in STARTS:
        extra.append(f"init_lora_weights={start!r} (it changes the base model)")
    if values.get("peft_type", "LORA") != "LORA":
        extra.append(f"peft_type={values['peft_type']!r}")
    if extra:
        raise UnsupportedModelError(f"the adapters need features that are not implemented:{listed(extra)}", file=file)
    if values.get("lora_dropout"):
        logger.warning("%s: lora_dropout=%s is not implemented: trained on without", file, values["lora_dropout"])
    known = {key: values[key] for key in ("r", "lora_alpha", "use_rslora") if values.get(key) is not None}
    targets = values.get("target_modules") or ALL_LINEAR
    try:
        return LoRA(**known, target_modules=targets)
    except (ArgumentError, TypeError) as error:
        raise CheckpointError(str(error), file=file) from None


def _shortest(model: LanguageModel, adapted: Sequence[Place]) -> list[str]:
    """Returns the places' last names if these select no other Linear, else their whole names."""
    whole = sorted(name for place in adapted for name in place.theirs if name)
    last = sorted({name.rpartition(".")[2] for name in whole})
    every = [name for place in places_of(model) for name in place.theirs if name]
    selected = [name for name in every if name.rpartition(".")[2] in last]
    return last if sorted(selected) == whole else whole
