"""A beam search finds transformers' texts with its scores, also on a mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from cases import Case
from cases.bart import whole
from cases.bigbird_pegasus import BLOCKS
from cases.led import led
from cases.llama import llama
from cases.longt5 import longt5
from cases.pegasus_x import SIZES as OWN_BLOCK
from cases.t5 import t5
from parity import make_reference, padded_mask, random_ids

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.errors import ArgumentError
from easydel.generate import PromptCache
from easydel.generate.programs import grow, loop, prefill
from easydel.generate.prompt import Prompt
from easydel.ops.beams import Beams
from easydel.ops.sampling import Rules

CASES = [
    llama("beams", num_hidden_layers=1),
    t5("beams", num_layers=1, num_decoder_layers=1),
    whole("bart", "beams", encoder_layers=1, decoder_layers=1, forced_bos_token_id=7),
]
LONG = [  # encoders of windows, blocks and tokens that see all
    longt5("beams", encoder_attention_type="transient-global", global_block_size=3, num_layers=1, num_decoder_layers=1),
    led("beams", encoder_layers=1, decoder_layers=1, attention_window=4),
    whole("pegasus_x", "beams", **OWN_BLOCK, encoder_layers=2, decoder_layers=1),
    replace(whole("bigbird_pegasus", "beams", **BLOCKS, encoder_layers=1, decoder_layers=1), length=25),
]
ENDS = {"eos_token_id": [17, 44, 88, 5, 9], "max_new_tokens": 14}
SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 4, "num_return_sequences": 3, "pad_token_id": 0, "length_penalty": 2.0, **ENDS},
    {"num_beams": 3, "pad_token_id": 3, "early_stopping": "never", "no_repeat_ngram_size": 2, **ENDS},
    {
        "num_beams": 3,
        "pad_token_id": 3,
        "early_stopping": True,
        "length_penalty": -1.0,
        "repetition_penalty": 1.3,
        "min_new_tokens": 4,
        "forced_eos_token_id": 17,
        **ENDS,
    },
]


def inputs_of(case: Case, batch: int = 3) -> tuple[np.ndarray, np.ndarray]:
    ids = random_ids(case, batch)
    mask = padded_mask(*ids.shape)
    return ids, mask[:, ::-1].copy() if case.seq2seq else mask


# Each setting on a decoder, and each encoder-decoder with one of them.
@pytest.mark.parametrize(("case", "chosen"), [(CASES[0], SETTINGS), (CASES[1], SETTINGS[:1]), (CASES[2], SETTINGS[2:])])
def test_beams_find_transformers_texts_with_its_scores(case: Case, chosen: list[dict[str, Any]], tmp_path: Path):
    reference = make_reference(case, tmp_path)
    reference.generation_config.update(num_beams=4, max_new_tokens=3, length_penalty=0.5)
    (tmp_path / "generation_config.json").write_text(json.dumps(reference.generation_config.to_diff_dict()))
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids, mask = inputs_of(case)
    kinds = {"return_dict_in_generate": True, "output_scores": True}
    for settings in chosen:
        expected = reference.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **kinds, **settings)
        found = model.generate(ids, mask, **settings)
        np.testing.assert_array_equal(found.sequences, expected.sequences.numpy())
        scores = expected.sequences_scores.numpy()
        np.testing.assert_allclose(found.sequences_scores, scores, rtol=1e-5, atol=1e-5)  # pyright: ignore
    if case.seq2seq:  # what the checkpoint asks for
        expected = reference.generate(torch.tensor(ids), attention_mask=torch.tensor(mask))
        np.testing.assert_array_equal(model.generate(ids, mask).sequences, expected.numpy())


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_behind_long_encoders_tokens_are_transformers(case: Case, tmp_path: Path):
    reference = make_reference(case, tmp_path)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids, mask = inputs_of(case)
    masks = {"attention_mask": mask}
    if case.model_type == "led":
        masks["global_attention_mask"] = np.eye(*ids.shape, dtype=np.int64)
    for beams in (1, 4):
        settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 8}
        expected = reference.generate(torch.tensor(ids), **{k: torch.tensor(v) for k, v in masks.items()}, **settings)
        np.testing.assert_array_equal(model.generate(ids, **masks, **settings).sequences, expected.numpy())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    make_reference(CASES[0], directory)
    return directory


@pytest.fixture(scope="module")
def model(directory: Path) -> BaseNNXModule:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0]


def test_beams_of_a_split_and_scanned_model_are_the_same(directory: Path, model: BaseNNXModule):
    ids, mask = inputs_of(CASES[0], batch=4)
    expected = model.generate(ids, mask, **SETTINGS[0])
    split, _ = AutoEasyDeLModelForCausalLM.from_pretrained(
        directory, auto_shard_params=True, sharding_axis_dims=(2, 2, 2, 1), scan_layers=True
    )
    found = split.generate(ids, mask, **SETTINGS[0], prefill_chunk_size=8)
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.sequences_scores, expected.sequences_scores, rtol=1e-5)  # pyright: ignore


def test_beams_need_no_more_memory_than_a_second_cache(model: BaseNNXModule):
    ids, mask = inputs_of(CASES[0])
    rules = Rules(beams=Beams(np.float32(1), np.int32(9), 4))
    prompt = Prompt(ids, mask.astype(bool))
    state, _ = jax.eval_shape(lambda params: prefill(model, params, prompt, None, rules), model.params)
    state = jax.eval_shape(lambda state: grow(model, state, 4096), state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    lowered = model.compiled(loop).lower(model.params, state, rules, np.int32(9))  # pyright: ignore
    memory: Any = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 1.2 * size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_sample": True}, "num_beams=4 with do_sample=True is not implemented; pass num_beams=1"),
        ({"num_return_sequences": 5}, "num_return_sequences=5 are more than num_beams=4"),
        ({"streamer": print}, "streamer with several beams, of which only the end tells the best; pass num_beams=1"),
        ({"prompt_cache": PromptCache()}, "prompt_cache with several beams"),
        ({"early_stopping": "soon"}, "early_stopping='soon', expected True, False or \"never\""),
        ({"length_penalty": "long"}, "length_penalty='long', expected a number"),
    ],
    ids=lambda part: part if isinstance(part, str) else next(iter(part)),
)
def test_what_beams_cannot_do_is_named(model: BaseNNXModule, arguments: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        model.generate(inputs_of(CASES[0])[0], num_beams=4, **arguments)
