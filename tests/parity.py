"""Reference models: made by transformers from a config, with every parameter random, and saved for us to load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from cases import Case
from mended import mend

Inputs = dict[str, np.ndarray]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
mend()


def make_reference(case: Case, directory: Path) -> Any:
    """A transformers model in eval mode with random weights, norms and biases; saved in `directory`."""
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    auto = transformers.AutoModelForSeq2SeqLM if case.seq2seq else transformers.AutoModelForCausalLM
    torch.manual_seed(sum(case.name.encode()))
    model = auto.from_config(config, attn_implementation=case.attention, dtype=torch.float32).eval()
    with torch.no_grad():
        waves = {f"{name}.weight" for name, module in model.named_modules() if "Sinusoidal" in type(module).__name__}
        for name, tensor in model.state_dict().items():  # what is not saved is computed, and stays
            if name not in waves:
                randomise(name, tensor)
            if name.endswith("tid2eid"):
                tensor.random_(0, config.n_routed_experts)
    if case.own_head or (case.seq2seq and not case.config.get("tie_word_embeddings", True)):
        separate_head(model)
    model.save_pretrained(directory)
    return model


def separate_head(model: Any) -> None:
    """A head of its own for an encoder-decoder that is tied whatever its config says: T5, which only loads others."""
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        weight = torch.randn_like(model.get_output_embeddings().weight) / 4
        model.get_output_embeddings().weight = torch.nn.Parameter(weight)


def randomise(name: str, tensor: torch.Tensor) -> None:
    """Norms around 1, biases around 0, matrices so that activations keep their size; computed tables stay.

    Single numbers are constants, which files may have otherwise.
    """
    if re.search(r"inv_freq|slope_rate|(query|key|diagonal)_decay", name) or not tensor.is_floating_point():
        return
    if name.endswith("A_log"):  # states decay by exp(-exp(A_log) * time step): neither at once nor never
        tensor.uniform_(-2, 1.5)
    elif tensor.ndim == 0 or name.endswith("layer_scalar"):
        tensor.mul_(1.3)
    elif tensor.ndim == 1:
        tensor.normal_(0, 0.3)
        if name.endswith("weight"):
            tensor.add_(1)
    else:
        tensor.normal_(0, 1.2 * tensor.shape[-1] ** -0.5)


def random_ids(case: Case, batch: int = 2, length: int | None = None, seed: int = 0) -> np.ndarray:
    """Token ids without 0, 1 and 2, which configs use as special tokens."""
    return np.random.default_rng(seed).integers(3, case.config["vocab_size"], (batch, length or case.length))


def padded_mask(batch: int, length: int, step: int = 3) -> np.ndarray:
    """Left padding of 0, `step`, ... tokens."""
    mask = np.ones((batch, length), np.int64)
    for row in range(batch):
        mask[row, : step * row] = 0
    return mask


def reference_logits(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """transformers' logits; positions count attended tokens, as its generate has it."""
    inputs: dict[str, Any] = {"input_ids": ids}
    if mask is not None:
        inputs |= {"attention_mask": mask}
        if accepts_positions(model):
            inputs |= {"position_ids": np.maximum(np.cumsum(mask, axis=-1) - 1, 0)}
    return logits_of(model, **inputs)


def logits_of(model: Any, **inputs: np.ndarray) -> np.ndarray:
    """transformers' logits, whatever it takes."""
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.float().numpy()


def reference_rows(model: Any, fed: str, inputs: Inputs) -> np.ndarray:
    """transformers' logits of each row without its left padding, for the tokens of `fed`; zero on padding."""
    length = inputs[fed].shape[1]
    rows = [logits_of(model, **row)[0] for row in rows_of(inputs)]
    return np.stack([np.pad(row, ((length - len(row), 0), (0, 0))) for row in rows])


def rows_of(inputs: Inputs) -> Iterator[Inputs]:
    """Each row of the inputs alone and without padding, instead of with masks."""
    masks = {name: inputs.get(name.replace("input_ids", "attention_mask")) for name in inputs if "input_ids" in name}
    for row in range(len(inputs["input_ids"])):
        attended = {name: slice(None) if mask is None else mask[row].astype(bool) for name, mask in masks.items()}
        yield {name: inputs[name][row : row + 1, chosen] for name, chosen in attended.items()}


def reference_cached_logits(model: Any, ids: np.ndarray, mask: np.ndarray, start: int) -> np.ndarray:
    """transformers' logits when tokens from `start` on are fed one at a time."""
    positions = torch.tensor(np.maximum(np.cumsum(mask, axis=-1) - 1, 0))
    model(input_ids=torch.tensor(ids[:, :1]))  # dynamic rope remembers the longest call until there is a short one
    cache, steps = None, []
    for begin, end in [(0, start), *((token, token + 1) for token in range(start, ids.shape[1]))]:
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(ids[:, begin:end]),
                attention_mask=torch.tensor(mask[:, :end]),
                position_ids=positions[:, begin:end],
                past_key_values=cache,
                use_cache=True,
            )
        cache = out.past_key_values
        steps.append(out.logits.float().numpy())
    return np.concatenate(steps, axis=1)


def accepts_positions(model: Any) -> bool:
    import inspect

    return "position_ids" in inspect.signature(model.forward).parameters


def kept(dtype: np.dtype) -> np.dtype:
    """The dtype of what was read as `dtype`: JAX has no integers wider than 32 bits."""
    return np.dtype(np.int32) if dtype == np.int64 else dtype


def assert_close(ours: Any, reference: np.ndarray, where: np.ndarray | None = None) -> None:
    """max|difference| <= 2e-4 * max|reference| + 1e-5, on positions `where` the mask is 1."""
    ours = np.asarray(ours, np.float32)
    assert ours.shape == reference.shape
    chosen = slice(None) if where is None else where.astype(bool)
    difference, size = np.abs(ours - reference)[chosen].max(), np.abs(reference)[chosen].max()
    assert size > 0.05, "a reference without signal proves nothing"
    assert difference <= 2e-4 * size + 1e-5, f"differs by {difference:.2e} where the reference reaches {size:.2e}"
