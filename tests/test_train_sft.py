"""Training on chats: the losses are torch's with the same labels, and the model answers as it was taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch
from chats import CHATML, PLAIN, chats, save_chat_model
from commands import invoke
from transformers import AutoTokenizer

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.train import IGNORED, Settings, Trainer, encoded, evaluator, in_rows
from easydel.train.data import shuffled

LENGTH, BATCH, STEPS = 96, 4, 20
CHATS = chats(12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    reference = save_chat_model(folder, template=PLAIN)
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    reference.folder = folder
    return reference


def torch_losses(reference: Any, batches: list[dict[str, np.ndarray]], rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(reference.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for batch in batches:
        given = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}
        optimizer.zero_grad()
        loss = reference.train()(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_twenty_losses_on_chats_equal_those_of_torch_on_the_assistants_tokens_alone(tiny: Any, tmp_path: Path):
    tokenizer = load_tokenizer(tiny.folder)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tiny.folder)
    optimizer = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    settings = Settings(steps=STEPS, batch=BATCH, length=LENGTH, packing=False)
    packed = in_rows(encoded(CHATS, tokenizer), LENGTH)  # type: ignore[arg-type]
    rows = in_rows(encoded(CHATS, tokenizer), LENGTH, packing=False)  # type: ignore[arg-type]
    assert len(packed) < len(rows) == len(CHATS)
    found = [evaluator(model, source, BATCH)(params) for source in (packed, rows)]
    np.testing.assert_allclose(found[0].loss, found[1].loss, rtol=1e-5, err_msg="packed, they do not see each other")

    trainer = Trainer(model, params, optimizer, CHATS, tmp_path, settings, tokenizer=tokenizer)
    trainer.run(progress=False)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    order = shuffled(rows, BATCH, settings.seed)
    batches = [next(order) for _ in range(STEPS)]
    theirs = AutoTokenizer.from_pretrained(tiny.folder)
    masks = [
        theirs.apply_chat_template(
            chat["messages"], chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        for chat in CHATS
    ]
    assert found[0].tokens == found[1].tokens == packed.learned == sum(map(sum, masks))
    assert [line["tokens"] for line in lines] == [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    assert sum(line["tokens"] for line in lines[:3]) == sum(map(sum, masks)), "each chat once"
    losses = [line["loss"] for line in lines]
    np.testing.assert_allclose(losses, torch_losses(tiny, batches, 1e-2), rtol=1e-4)
    assert losses[-1] < losses[0] / 2


def test_the_command_trains_on_chats_evaluates_and_writes_a_model_that_answers_so(tiny: Any, tmp_path: Path):
    given = ("train", tiny.folder, tiny.folder / "chats.jsonl", "--out", tmp_path, "--mesh", "1,1,1,1")
    options = ("--epochs", 30, "--batch", 2, "--length", 128, "--learning-rate", 0.01, "--eval-split", 0.1)
    result = invoke(*given, *options, "--eval-every", 20, "--optimizer", "lion", "--ema", 0.5, "--schedule", "wsd")
    assert result.exit_code == 0, result.output
    assert "11 examples in " in result.stderr
    assert "step 1/" in result.stderr, "without a terminal there are lines"
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    held = [line for line in lines if "eval_loss" in line]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in held] == [*range(20, len(steps), 20), len(steps)]
    assert {"learning_rate", "seconds", "tokens_per_second", "memory"} <= steps[-1].keys()
    assert steps[-1]["loss"] < 0.3
    answer = invoke("generate", CHATS[4]["messages"][0]["content"], "--model", tmp_path / "model", "-n", 30)
    assert answer.stdout.startswith("No, it's quick!")
    told = invoke("eval", tmp_path / "model", tiny.folder / "chats.jsonl", "--mesh", "1,1,1,1", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["loss"] < 0.5
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    again = invoke(*given, *options, "--eval-every", 20)
    assert again.exit_code == 2
    assert "optimizer was 'lion', is 'adamw'" in again.stderr
