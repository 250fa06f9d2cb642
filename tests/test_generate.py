"""Generated tokens equal transformers' own, in whichever way they are computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import Case
from cases.bart import whole
from cases.llama import llama
from cases.t5 import t5
from parity import make_reference, padded_mask, random_ids

import easydel.generate.cache_lengths
import easydel.ops.chunked
from easydel import ArgumentError, AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.generate.programs import grow, loop, prefill, step
from easydel.generate.prompt import Prompt
from easydel.ops.sampling import Rules

BATCH, NEW = 3, 24
ENDS = {"eos_token_id": [17, 44, 88], "pad_token_id": 0}  # with these, the rows end at different steps
CASE = llama("generate", num_hidden_layers=2)


@dataclass
class Loaded:
    directory: Path
    reference: Any
    model: BaseNNXModule
    params: dict[str, Any]
    ids: np.ndarray
    mask: np.ndarray

    def expected(self, **arguments: Any) -> np.ndarray:
        return reference_tokens(self.reference, self.ids, self.mask, **arguments)

    def tokens(self, **arguments: Any) -> np.ndarray:
        return self.model.generate(self.ids, self.mask, **arguments).sequences


def reference_tokens(reference: Any, ids: np.ndarray, mask: np.ndarray, **arguments: Any) -> np.ndarray:
    return reference.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **arguments).numpy()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    directory = tmp_path_factory.mktemp("model")
    reference = make_reference(CASE, directory)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    ids = random_ids(CASE, BATCH)
    return Loaded(directory, reference, model, params, ids, padded_mask(*ids.shape))


def compiled_programs(model: BaseNNXModule) -> list[int]:
    return [model.compiled(function)._cache_size() for function in (prefill, grow, loop)]  # pyright: ignore


def test_greedy_tokens_equal_transformers(loaded: Loaded):
    expected = loaded.expected(max_new_tokens=NEW, **ENDS)
    lengths = (expected[:, CASE.length :] != 0).sum(axis=1)
    assert len(set(lengths)) > 1, "rows that end together prove nothing"
    np.testing.assert_array_equal(loaded.tokens(max_new_tokens=NEW, **ENDS), expected)


def test_processed_greedy_tokens_equal_transformers(loaded: Loaded):
    arguments: dict[str, Any] = {
        **ENDS,
        "max_new_tokens": NEW,
        "min_new_tokens": 20,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "forced_eos_token_id": 5,
    }
    expected = loaded.expected(**arguments)
    np.testing.assert_array_equal(loaded.tokens(**arguments), expected)
    assert (expected != loaded.tokens(max_new_tokens=NEW, **ENDS)[:, : expected.shape[1]]).any()


def test_tokens_that_must_not_come_and_scores_equal_transformers(loaded: Loaded):
    plain = loaded.tokens(max_new_tokens=NEW, **ENDS)[:, CASE.length :]
    single, pair = int(plain[0, 0]), [int(token) for token in plain[1, 1:3]]
    arguments: dict[str, Any] = {
        "max_new_tokens": NEW,
        "bad_words_ids": [[single], pair, [90, 91, 92]],
        "suppress_tokens": [int(plain[0, 3])],
        "do_sample": False,
    }
    ours = loaded.model.generate(
        loaded.ids,
        loaded.mask,
        output_scores=True,
        logits_processor=lambda tokens, scores: scores.at[:, 7].add(2.0),
        **arguments,
        **ENDS,
    )
    theirs = loaded.reference.generate(
        torch.tensor(loaded.ids),
        attention_mask=torch.tensor(loaded.mask),
        output_scores=True,
        return_dict_in_generate=True,
        logits_processor=[lambda tokens, scores: scores + 2.0 * (torch.arange(scores.shape[1]) == 7)],
        **arguments,
        **ENDS,
    )
    np.testing.assert_array_equal(ours.sequences, theirs.sequences.numpy())
    assert ours.scores is not None
    for count, (mine, other) in enumerate(zip(ours.scores, theirs.scores, strict=True)):
        going = [row for row in range(BATCH) if 0 not in ours.sequences[row, CASE.length : CASE.length + count]]
        np.testing.assert_allclose(mine[going], other.numpy()[going], rtol=1e-4, atol=1e-4)
    expected = loaded.reference.compute_transition_scores(theirs.sequences, theirs.scores, normalize_logits=True)
    np.testing.assert_allclose(ours.logprobs[0, :5], expected[0, :5], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ours[0], ours.sequences[0])


def test_a_row_ends_with_the_token_that_completes_a_stop_string(loaded: Loaded):
    class Letters:
        """Token 3 is "d", and so on; decoding is by token."""

        def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
            return "".join(chr(ord("a") + int(id)) for id in ids)

    plain = loaded.tokens(max_new_tokens=NEW, **ENDS)[:, CASE.length :]
    stop = Letters().decode(plain[0, 4:6], skip_special_tokens=False)
    made = loaded.tokens(max_new_tokens=NEW, stop_strings=stop, tokenizer=Letters(), **ENDS)[:, CASE.length :]
    np.testing.assert_array_equal(made[0, :6], plain[0, :6])
    assert not made[0, 6:].any(), "padding follows"
    np.testing.assert_array_equal(made[1], plain[1, : made.shape[1]])
    with pytest.raises(ArgumentError, match="stop_strings need a tokenizer; pass tokenizer="):
        loaded.tokens(max_new_tokens=NEW, stop_strings=stop, **ENDS)


def test_streamed_tokens_equal_those_of_the_loop(loaded: Loaded):
    heard: list[np.ndarray] = []
    expected = loaded.tokens(max_new_tokens=NEW, **ENDS)
    streamed = loaded.tokens(max_new_tokens=NEW, streamer=heard.append, **ENDS)
    np.testing.assert_array_equal(streamed, expected)
    np.testing.assert_array_equal(np.stack(heard, axis=1), expected[:, CASE.length :])


def test_a_streamer_of_transformers_gets_prompt_tokens_and_end(loaded: Loaded):
    heard: list[Any] = []

    class Streamer:
        def put(self, value: np.ndarray) -> None:
            heard.append(value)

        def end(self) -> None:
            heard.append("end")

    loaded.tokens(max_new_tokens=3, streamer=Streamer(), **ENDS)
    prompt, *tokens, end = heard
    np.testing.assert_array_equal(prompt, loaded.ids)
    assert len(tokens) == 3
    assert end == "end"


def test_samples_depend_on_the_seed_and_the_row_alone(loaded: Loaded):
    arguments: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": None}
    first = loaded.tokens(seed=1, **arguments)
    np.testing.assert_array_equal(loaded.tokens(seed=1, **arguments), first)
    np.testing.assert_array_equal(loaded.tokens(rng=jax.random.key(1), **arguments), first)
    assert (loaded.tokens(seed=2, **arguments) != first).any(axis=1).all()
    others = np.concatenate([loaded.ids[:1], loaded.ids[1:][::-1]])
    mask = np.ones_like(loaded.mask)
    np.testing.assert_array_equal(loaded.model.generate(others, mask, seed=1, **arguments).sequences[0], first[0])
    same = loaded.model.generate(loaded.ids[:1], num_return_sequences=BATCH, seed=1, **arguments).sequences
    np.testing.assert_array_equal(same[0], first[0])
    assert len({tuple(row) for row in same}) == BATCH


def test_sampling_again_gives_another_text_which_its_seed_gives_again(loaded: Loaded):
    arguments: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": None}
    first, second = (loaded.model.generate(loaded.ids, **arguments) for _ in range(2))
    assert first.seed is not None
    assert (first.sequences != second.sequences).any(axis=1).all()
    again = loaded.model.generate(loaded.ids, seed=first.seed, **arguments)
    np.testing.assert_array_equal(again.sequences, first.sequences)
    assert again.seed == first.seed
    assert loaded.model.generate(loaded.ids, max_new_tokens=1).seed is None


def test_other_lengths_and_values_compile_nothing(loaded: Loaded):
    loaded.tokens(max_new_tokens=NEW, **ENDS)
    loaded.tokens(max_new_tokens=NEW, do_sample=True, eos_token_id=None)
    before = compiled_programs(loaded.model)
    longer = np.concatenate([loaded.ids, loaded.ids[:, :3]], axis=1)
    loaded.model.generate(longer, max_new_tokens=70, eos_token_id=[3, 4, 5], pad_token_id=1)
    loaded.tokens(max_new_tokens=9, do_sample=True, eos_token_id=None, temperature=1.3, top_k=12, seed=7)
    assert compiled_programs(loaded.model) == before


def test_a_growing_cache_changes_nothing(loaded: Loaded, monkeypatch: pytest.MonkeyPatch):
    new, ends = 50, {"eos_token_id": [95, 96, 97], "pad_token_id": 0}
    expected = loaded.tokens(max_new_tokens=new, **ends)
    monkeypatch.setattr(easydel.generate.cache_lengths, "SHORTEST", 32)
    monkeypatch.setattr(easydel.generate.cache_lengths, "AHEAD", 8)
    assert easydel.generate.cache_lengths.cache_lengths(16, new) == [32, 128]
    np.testing.assert_array_equal(loaded.tokens(max_new_tokens=new, **ends), expected)
    np.testing.assert_array_equal(loaded.tokens(max_new_tokens=new, streamer=print, **ends), expected)


def test_right_padded_prompts_go_on_after_their_last_token(loaded: Loaded):
    expected = loaded.tokens(max_new_tokens=NEW, **ENDS)[:, CASE.length :]
    length = loaded.mask.sum(axis=1)
    ids = np.stack([np.roll(row, count) for row, count in zip(loaded.ids, length, strict=True)])
    mask = np.arange(CASE.length) < length[:, None]
    out = loaded.model.generate(ids, mask, max_new_tokens=NEW, **ENDS).sequences
    np.testing.assert_array_equal(out[:, : CASE.length], ids)
    np.testing.assert_array_equal(out[:, CASE.length :], expected)


def test_padding_tokens_are_masked_if_no_mask_says_otherwise(loaded: Loaded):
    ids = np.where(loaded.mask, loaded.ids, 0)
    out = loaded.model.generate(ids, max_new_tokens=NEW, **ENDS).sequences
    np.testing.assert_array_equal(out[:, CASE.length :], loaded.tokens(max_new_tokens=NEW, **ENDS)[:, CASE.length :])


def test_other_parameters_than_the_models_own(loaded: Loaded):
    other = jax.tree.map(lambda leaf: leaf[::-1] if leaf.shape == (97, 48) else leaf, loaded.params)
    out = loaded.tokens(max_new_tokens=4, params=other, **ENDS)
    assert (out != loaded.tokens(max_new_tokens=4, **ENDS)).any()


def test_scanned_layers_make_the_same_tokens(loaded: Loaded):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=True)
    out = model.generate(loaded.ids, loaded.mask, max_new_tokens=NEW, **ENDS).sequences
    np.testing.assert_array_equal(out, loaded.tokens(max_new_tokens=NEW, **ENDS))


def test_sharded_models_make_the_same_tokens_with_a_sharded_cache(loaded: Loaded):
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        loaded.directory, auto_shard_params=True, sharding_axis_dims=(2, 2, 2, 1)
    )
    ids, mask = (np.concatenate([part, part[:1]]) for part in (loaded.ids, loaded.mask))  # a row for each of dp x fsdp
    out = model.generate(ids, mask, max_new_tokens=NEW, **ENDS).sequences
    np.testing.assert_array_equal(out[:BATCH], loaded.tokens(max_new_tokens=NEW, **ENDS))
    rules = Rules(eos_E=np.array(ENDS["eos_token_id"], np.int32), pad=np.int32(0))
    state, _ = model.compiled(prefill)(params, Prompt(ids.astype(np.int32), mask.astype(bool)).padded(16), None, rules)
    grown = model.compiled(grow)(state, 128)
    done, made = model.compiled(loop)(params, grown, rules, np.int32(NEW))
    for keys in (part.cache["layers"][0]["mixer"]["k"].array for part in (state, done)):
        assert {shard.data.shape for shard in keys.addressable_shards} == {(1, 1, *keys.shape[2:])}
    # any process of several can read these
    assert all(leaf.is_fully_replicated for leaf in (done.tokens_BS, done.count, made.tokens_B, made.done))


def test_lower_precision_takes_its_own_likeliest_tokens(loaded: Loaded):
    options: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "load_in_8bit": True}
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, **options)
    out = model.generate(loaded.ids, loaded.mask, max_new_tokens=NEW, eos_token_id=None).sequences
    mask = np.concatenate([loaded.mask, np.ones((BATCH, NEW), int)], axis=1)
    logits = np.asarray(model(out, mask).logits[:, CASE.length - 1 : -1], np.float32)
    chosen = np.take_along_axis(logits, out[:, CASE.length :, None], axis=2)[..., 0]
    assert (logits.max(axis=2) - chosen).max() <= 0.05 * np.abs(logits).max()


@pytest.mark.parametrize(("function", "scan_layers"), [(step, False), (loop, False), (step, True), (loop, True)])
def test_the_cache_is_updated_in_place(loaded: Loaded, function: Any, scan_layers: bool):
    model, params, slots = loaded.model, loaded.params, 4096
    if scan_layers:
        model, params = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=True)
    prompt = Prompt(loaded.ids, loaded.mask.astype(bool))
    state, _ = jax.eval_shape(lambda params: prefill(model, params, prompt, None, Rules()), params)
    state = jax.eval_shape(lambda state: grow(model, state, slots), state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    limit = [np.int32(9)] if function is loop else []
    lowered = model.compiled(function).lower(params, state, Rules(), *limit)  # pyright: ignore
    memory: Any = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size * (0.7 if scan_layers else 0.5)  # a scan copies some of a layer


def test_temporaries_of_a_prompt_grow_with_its_length_not_with_its_square(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(easydel.ops.chunked, "CHUNK", 64)

    def temporary_bytes(length: int) -> int:
        prompt = Prompt(np.zeros((1, length), np.int32), np.ones((1, length), bool))
        lowered = loaded.model.compiled(prefill).lower(loaded.params, prompt, None, Rules())  # pyright: ignore
        memory: Any = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary_bytes(2048) < 4.5 * temporary_bytes(512)


SEQ2SEQ = [
    t5("generate", num_layers=1, num_decoder_layers=1),
    whole("bart", "generate", encoder_layers=1, decoder_layers=1, forced_bos_token_id=7),
]


@pytest.mark.parametrize("case", SEQ2SEQ, ids=lambda case: case.name)
def test_encoder_decoders_equal_transformers(case: Case, tmp_path: Path):
    reference = make_reference(case, tmp_path)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(case, BATCH)
    mask = padded_mask(*ids.shape)[:, ::-1].copy()
    arguments: dict[str, Any] = {"eos_token_id": [17, 44, 88], "max_length": 12, "forced_eos_token_id": 6}
    expected = reference_tokens(reference, ids, mask, num_beams=1, **arguments)
    assert expected.shape[1] > 3
    np.testing.assert_array_equal(model.generate(ids, mask, **arguments).sequences, expected)
