"""Encoder-decoders train as torch trains them: labels are the decoder's targets, and its inputs moved right by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch
from cases import Case
from cases.bart import whole
from cases.t5 import t5
from parity import make_reference, padded_mask, random_ids

from easydel import AutoEasyDeLModelForSeq2SeqLM
from easydel.errors import ArgumentError
from easydel.lora import LoRA, add_adapters, merge_adapters
from easydel.train import IGNORED, init_state, step
from easydel.tree import ADAPTERS, flatten

CASES = [
    whole("bart", "trained", encoder_layers=1, decoder_layers=1),
    t5("trained", num_layers=1, num_decoder_layers=1, feed_forward_proj="gated-gelu"),
]
B, S, T, STEPS = 8, 13, 7, 20
# A small rate: random models learn chaotically.
RATE, EPSILON = 3e-3, 1e-4  # else rounding errors in gradients of nearly nothing become whole steps


def batch(case: Case, seed: int) -> dict[str, np.ndarray]:
    labels = random_ids(case, B, T, seed)
    labels = np.where(np.arange(T) < np.arange(B)[:, None] // 2 + 4, labels, IGNORED)
    mask = padded_mask(B, S, step=1)[:, ::-1].copy()
    return {"input_ids": random_ids(case, B, S, seed + 100), "attention_mask": mask, "labels": labels}


def batches(case: Case, steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    return [batch(case, seed % 3) for seed in range(steps)]


def train(directory: Path, case: Case, steps: int = STEPS, lora: LoRA | None = None, **choices: Any) -> Any:
    """(losses, first parameters, state) of a model loaded from `directory`."""
    model, params = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(directory, **choices)
    params = params if lora is None else add_adapters(model, lora)
    first = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.95, eps=EPSILON, weight_decay=0.1)
    state, run = init_state(model, params, optimizer), step(model, optimizer, clip=1.0, tokens=16)
    losses = []
    for given in batches(case, steps):
        state, metrics = run(state, given)
        losses.append(float(metrics.loss))
    return losses, first, model, state


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twenty_losses_of_an_encoder_decoder_equal_those_of_torch(case: Case, tmp_path: Path):
    reference = make_reference(case, tmp_path)  # without dropout
    settings = {"lr": RATE, "betas": (0.9, 0.95), "eps": EPSILON, "weight_decay": 0.1}
    torch_optimizer, theirs = torch.optim.AdamW(reference.parameters(), **settings), []
    for given in batches(case):
        torch_optimizer.zero_grad()
        loss = reference(**{name: torch.tensor(array) for name, array in given.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        torch_optimizer.step()
        theirs.append(loss.item())
    ours, *_ = train(tmp_path, case)
    assert theirs[0] - theirs[-1] > 0.3, "nothing was learned"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    if case is CASES[0]:
        return
    split = {"auto_shard_params": True, "sharding_axis_dims": (1, 2, 2, 2), "scan_layers": True}
    np.testing.assert_allclose(train(tmp_path, case, 3, **split)[0], theirs[:3], rtol=1e-4)


def test_adapters_stand_in_encoder_decoder_and_cross_attention_and_are_all_that_learns(tmp_path: Path):
    make_reference(CASES[0], tmp_path)
    losses, first, model, state = train(tmp_path, CASES[0], 4, LoRA(r=4, lora_alpha=8))
    assert losses[3] < losses[0], "the batch comes again after three steps"
    adapted = {path.rpartition("/")[0] for path in first if path.endswith(ADAPTERS)}
    parts = ("encoder/layers/0/self_attn", "decoder/layers/0/self_attn", "decoder/layers/0/cross_attn")
    expected = {f"model/{part}/{name}_proj" for part in parts for name in "qkvo"}
    expected |= {f"model/{tower}coder/layers/0/mlp/{name}_proj" for tower in ("en", "de") for name in ("up", "down")}
    assert adapted == expected
    after = flatten(state.params)
    changed = {path for path in first if (np.asarray(after[path]) != first[path]).any()}
    assert changed == {path for path in first if path.endswith(ADAPTERS)}
    given = {name: array[:1] for name, array in batch(CASES[0], 0).items() if name != "labels"}
    given["decoder_input_ids"] = np.array([[2, 5, 6]])
    before = model.apply(state.params, **given).logits
    merged = merge_adapters(model, state.params)
    np.testing.assert_allclose(model.apply(merged, **given).logits, before, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"the batch has \['attention_mask', 'input_ids'\], and lacks labels"),
        ({"segment_ids": np.zeros((B, S), int)}, r"the batch has \['segment_ids'\]; it may have input_ids"),
        (
            {"attention_mask": np.ones((B, T))},
            r"shapes .*input_ids.*mask.*, expected \[batch, length\] for all",
        ),
        ({"labels": np.zeros((3, T), int)}, r"shapes .*labels.*\(3, 7\).*, expected \[batch, length\] for all"),
        ({"decoder_input_ids": np.full((B, T), 97)}, r"decoder_input_ids\[0, 0\] is 97, outside the vocabulary"),
    ],
    ids=str,
)
def test_a_batch_that_does_not_fit_is_named(change: dict[str, Any], message: str, tmp_path: Path):
    make_reference(CASES[0], tmp_path)
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    given = {name: array for name, array in (batch(CASES[0], 0) | change).items() if array is not None}
    with pytest.raises(ArgumentError, match=message):
        step(model, optax.sgd(0.1)).placed(given)
