"""Compares our logits with those of transformers, for the same random tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from easydel.errors import CheckpointError

# Rounding differs between two correct programs by about 1e-5 of the largest logit; a wrong constant by far more.
RELATIVE, ABSOLUTE = 2e-4, 1e-5
BATCH, PADDING = 2, 3
DECODER_IDS = "decoder_input_ids"  # given to encoder-decoders only
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Differences over all tokens that are not padding.

    If `decoded` is True, transformers got the weights as floats, decoded here: it cannot read how they are quantized.
    """

    max_difference: float
    max_reference: float
    top1_agreement: float
    tokens: int
    decoded: bool

    @property
    def tolerance(self) -> float:
        return RELATIVE * self.max_reference + ABSOLUTE

    @property
    def passed(self) -> bool:
        return self.max_difference <= self.tolerance


def compare(path: Path, length: int, adapter: Path | None = None, follow_links: bool = False) -> Comparison:
    """Compares both models' logits of the same random tokens."""
    inputs, ours = _our_logits(path, length, adapter=adapter, follow_links=follow_links)
    theirs, decoded = _reference(path, inputs, adapter)
    # a decoder does not see an encoder's padding, so all of its tokens count
    counted = np.ones(ours.shape[:2], bool) if DECODER_IDS in inputs else inputs["attention_mask"].astype(bool)
    ours, theirs = ours[counted], theirs[counted]
    return Comparison(
        max_difference=float(np.abs(ours - theirs).max()),
        max_reference=float(np.abs(theirs).max()),
        top1_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        tokens=int(counted.sum()),
        decoded=decoded,
    )


def _our_logits(path: Path, length: int, **options: Any) -> tuple[Inputs, np.ndarray]:
    """Returns the inputs of both models, and our logits; the model is freed afterwards."""
    from easydel.auto import AutoEasyDeLModelForCausalLM

    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(path, precision="highest", **options)
    ids = np.random.default_rng(0).integers(0, model.record.vocab, (BATCH, length))
    mask = np.ones_like(ids)
    inputs = model.record.example({"input_ids": ids, "attention_mask": mask})
    # transformers' encoders count positions from the left, padding or not
    mask[-1, slice(-PADDING, None) if DECODER_IDS in inputs else slice(PADDING)] = 0
    return inputs, np.asarray(model(**inputs).logits, np.float32)


def _reference(path: Path, inputs: Inputs, adapter: Path | None) -> tuple[np.ndarray, bool]:
    """Returns transformers' logits, and whether they are of quantized weights that were decoded here."""
    from easydel.auto import AutoEasyDeLModelForCausalLM
    from easydel.source import is_quantized

    quantized = is_quantized(path)
    try:
        with _with_exact_inputs(path) as place:
            return _their_logits(place, inputs, adapter, quantized=quantized), False
    except Exception:  # any error of another program
        if not quantized:
            raise
    with TemporaryDirectory() as place:
        model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(path)
        model.export(place, dtype="float32")
        del model
        return _their_logits(Path(place), inputs, adapter), True


@contextmanager
def _with_exact_inputs(path: Path) -> Iterator[Path]:
    """Yields a directory with the same files, in whose config no inputs of products are rounded to 8 bits."""
    config = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
    groups = (config.get("quantization_config") or {}).get("config_groups")
    rounding = [group for group in groups.values() if group.get("input_activations")] if groups else []
    if not rounding:
        yield path
        return
    for group in rounding:
        group["input_activations"] = None
    with TemporaryDirectory() as place:
        for file in path.iterdir():
            (Path(place) / file.name).symlink_to(file.resolve())
        (Path(place) / "config.json").unlink()
        (Path(place) / "config.json").write_text(json.dumps(config))
        yield Path(place)


def _their_logits(path: Path, inputs: Inputs, adapter: Path | None, *, quantized: bool = False) -> np.ndarray:
    import torch
    import transformers

    if DECODER_IDS in inputs:
        auto = transformers.AutoModelForSeq2SeqLM
    elif _is_multimodal(path):
        auto = transformers.AutoModelForImageTextToText
    else:
        auto = transformers.AutoModelForCausalLM
    model = _their_model(path, auto)
    if quantized and getattr(model, "hf_quantizer", None) is None:
        raise CheckpointError("transformers takes its codes for weights", file=path)
    parameters = signature(model.forward).parameters
    if adapter is not None:
        peft = import_module("peft")  # no dependency of ours
        model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    tensors = {name: torch.tensor(values) for name, values in inputs.items()}
    if "position_ids" in parameters:
        tensors["position_ids"] = (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**tensors).logits.float().numpy()


def _is_multimodal(path: Path) -> bool:
    from easydel.config import HFConfig
    from easydel.families import find_wrapper

    file = (path if path.is_dir() else path.parent) / "config.json"
    return file.is_file() and find_wrapper(HFConfig.from_file(file).get("model_type")) is not None


def _their_model(path: Path, auto: Any) -> Any:
    """Returns transformers' model of the same checkpoint; code in the checkpoint is not run."""
    import torch
    import transformers

    from easydel.checkpoint import find_checkpoint

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    file = find_checkpoint(path, follow_links=True)[0]
    options: dict[str, Any] = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    try:
        return auto.from_pretrained(
            file.parent,
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            **options,
        ).eval()
    except Exception as error:  # any error of another program
        raise CheckpointError(f"transformers cannot load it: {type(error).__name__}: {error}", file=path) from error
