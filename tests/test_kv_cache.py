"""Layers with a window keep only its keys and values, without any effect on the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import case
from parity import assert_close, make_reference, padded_mask, random_ids, reference_logits

from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.generate import PromptCache
from easydel.generate.programs import empty, step
from easydel.layers.kv_cache import REWIND, places, reachable
from easydel.ops.sampling import Rules

WINDOW = 5
# layers with and without a window, and positions that reach beyond what the cache of a window holds
CASE = case("gemma2", "rolling", num_hidden_layers=4, head_dim=12, sliding_window=WINDOW, max_position_embeddings=512)
KEPT = WINDOW + REWIND
LENGTH = 2 * KEPT + 20
NEW: dict[str, Any] = {"eos_token_id": None, "repetition_penalty": 1.2}


@dataclass(frozen=True)
class Loaded:
    directory: Path
    reference: Any
    model: BaseNNXModule


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    directory = tmp_path_factory.mktemp("model")
    reference = make_reference(CASE, directory)
    return Loaded(directory, reference, AutoEasyDeLModelForCausalLM.from_pretrained(directory)[0])


def test_the_cache_of_a_window_does_not_grow_with_the_sequence(loaded: Loaded):
    for length in (KEPT - 1, KEPT, 10_000):
        layers = jax.eval_shape(lambda: loaded.model.init_cache(1, length))["layers"]  # noqa: B023
        sizes = [layer["mixer"]["k"].array.shape[2] for layer in layers]
        assert sizes == [min(length, KEPT), length] * 2


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [[LENGTH - 20, *[1] * 20], [*[1] * 80, 78], [3, 60, 1, 1, KEPT, 1, 2, 21], [KEPT + 30, KEPT - 10]],
    ids=["a prompt, then steps", "steps, then a prompt", "parts of all sizes", "two long parts"],
)
def test_calls_of_any_size_equal_one_without_a_cache(loaded: Loaded, sizes: list[int], scan_layers: bool):
    assert sum(sizes) == LENGTH
    model = loaded.model
    if scan_layers:
        model = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=True)[0]
    ids, mask = random_ids(CASE, 3, LENGTH), padded_mask(3, LENGTH)
    cache, parts, start = model.init_cache(3, LENGTH), [], 0
    for size in sizes:
        part = slice(start, start + size)
        out = model(ids[:, part], mask[:, part], cache=cache)
        cache, start = out.cache, start + size
        parts.append(out.logits)
    assert_close(jnp.concatenate(parts, axis=1), reference_logits(loaded.reference, ids, mask), mask)


def test_greedy_tokens_equal_those_of_transformers(loaded: Loaded):
    ids, mask = random_ids(CASE, 2, 40), padded_mask(2, 40)
    made = loaded.model.generate(ids, mask, max_new_tokens=100, **NEW).sequences
    expected = loaded.reference.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=100, do_sample=False, pad_token_id=0, **NEW
    )
    np.testing.assert_array_equal(made, expected.numpy())


@pytest.mark.parametrize("chunk", [1, 7, KEPT, KEPT + 20])
def test_prompts_read_in_parts_give_the_same_tokens(loaded: Loaded, chunk: int):
    ids = random_ids(CASE, 1, 100)
    expected = loaded.model.generate(ids, max_new_tokens=4, **NEW).sequences
    made = loaded.model.generate(ids, max_new_tokens=4, prefill_chunk_size=chunk, **NEW).sequences
    np.testing.assert_array_equal(made, expected)


# 260 more tokens are read with 124 of padding behind them
@pytest.mark.parametrize(("back", "more"), [(0, 260), (3, 20), (REWIND + 2, 20), (REWIND + 3, 20), (90, 20)])
def test_a_conversation_goes_back_as_far_as_the_window_there_is_kept(loaded: Loaded, back: int, more: int):
    kept, said = PromptCache(), random_ids(CASE, 1, 90)
    said = loaded.model.generate(said, max_new_tokens=30, prompt_cache=kept, **NEW).sequences
    said = np.concatenate([said[:, : said.shape[1] - back], random_ids(CASE, 1, more, seed=1)], axis=1)
    made = loaded.model.generate(said, max_new_tokens=8, prompt_cache=kept, **NEW).sequences
    np.testing.assert_array_equal(made, loaded.model.generate(said, max_new_tokens=8, **NEW).sequences)
    # of 120 tokens the last was never read
    assert kept.reused == (0 if back > REWIND + 2 else min(120 - back, 119))


def test_what_a_longer_conversation_overwrote_stays_out_of_reach_after_going_back(loaded: Loaded):
    kept, said, reused = PromptCache(), random_ids(CASE, 1, 150), []
    for back in (0, 50, 30, 0):
        said = np.concatenate([said[:, : said.shape[1] - back], random_ids(CASE, 1, 1, seed=back)], axis=1)
        made = loaded.model.generate(said, max_new_tokens=8, prompt_cache=kept, **NEW).sequences
        np.testing.assert_array_equal(made, loaded.model.generate(said, max_new_tokens=8, **NEW).sequences)
        reused.append(kept.reused)
        said = made
    # the third turn goes back to token 88: the first one wrote 158, the last of them over what was 69 before
    assert reused == [0, 159 - 50, 0, 97 - 1]


def test_reachable_says_what_a_cache_still_holds():
    kept, window = places(1000, WINDOW), WINDOW
    for end in range(1, 3 * kept):
        held = {place: max(slot for slot in range(place, end, kept)) for place in range(min(end, kept))}
        for slot in range(max(end - kept - 2, 1), end + 1):
            seen = range(max(slot - window + 1, 0), slot)
            slots = reachable(1000, window, end)
            assert (slots is None or end - slot <= slots) == all(held[one % kept] == one for one in seen)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_tokens_on_a_mesh_are_those_of_one_device(loaded: Loaded, scan_layers: bool):
    ids, mask = random_ids(CASE, 2, 30), padded_mask(2, 30)
    options: dict[str, Any] = {"auto_shard_params": True, "sharding_axis_dims": (2, 1, 2, 2)}
    model = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=scan_layers, **options)[0]
    made = model.generate(ids, mask, max_new_tokens=60, **NEW).sequences
    np.testing.assert_array_equal(made, loaded.model.generate(ids, mask, max_new_tokens=60, **NEW).sequences)


def test_a_step_updates_the_cache_where_it_is(loaded: Loaded):
    model = loaded.model
    # two layers of four have 69 of 100 places
    state = jax.eval_shape(lambda: empty(model, jnp.zeros(2048, jnp.int32), 100))
    lowered = model.compiled(step).lower(model.params, state, Rules())  # pyright: ignore[reportFunctionMemberAccess]
    memory: Any = lowered.compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 5  # scores; keys and values of one of those layers are a fifth
