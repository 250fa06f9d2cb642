"""What only encoders opened as language models do: they see both ways, and their files have old names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from cases import all_cases
from parity import assert_close, logits_of, make_reference, random_ids
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM
from easydel.errors import ArgumentError, UnsupportedModelError
from easydel.layers.context import Context
from easydel.layers.position import Blocks

CASES = {case.name: case for case in all_cases()}
IDS = {"input_ids": random_ids(CASES["bert-causal"])}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("bert")
    return make_reference(CASES["bert-both-ways"], directory), directory


def copied(directory: Path, target: Path, **config: Any) -> Path:
    """`target` with the config of the checkpoint in `directory`, changed."""
    values = json.loads((directory / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(values))
    return target


def test_a_model_that_sees_both_ways_has_no_cache(bert: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(bert[1])
    for call in (lambda: model.init_cache(2, 20), lambda: model.generate(IDS["input_ids"], max_new_tokens=2)):
        with pytest.raises(ArgumentError, match=r"tokens see later ones.*is_decoder"):
            call()
    with pytest.raises(UnsupportedModelError, match="segment_ids"):
        model(**IDS, segment_ids=np.zeros_like(IDS["input_ids"]))


def test_it_decodes_with_is_decoder(bert: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(bert[1], config_kwargs={"is_decoder": True})
    assert model.generate(IDS["input_ids"], max_new_tokens=2).sequences.shape == (2, IDS["input_ids"].shape[1] + 2)


def test_blocks_count_the_tokens_of_each_row_and_short_rows_see_everything():
    counts, length = [17, 15, 14], 20
    valid = np.arange(length) >= length - np.array(counts)[:, None]
    bias = Blocks(size=2, again=1).bias(Context(jnp.zeros((3, length), jnp.int32), valid_BS=jnp.asarray(valid)), length)
    assert callable(bias)
    whole = np.asarray(bias(0, length))[:, 0]
    np.testing.assert_array_equal(np.asarray(bias(5, 4))[:, 0], whole[:, 5:9])
    for row, count in enumerate(counts[:2]):
        tokens = np.arange(count) // 2
        last, (q, k) = tokens[-1], np.meshgrid(tokens, tokens, indexing="ij")
        inner = (q > 0) & (q < last)
        unseen = inner & (k > 0) & (k < last) & (np.abs(q - k) > 1)
        expected = np.where(unseen, -1e30, np.where(inner & (k == 0), np.log(2), 0)).astype(np.float32)
        np.testing.assert_allclose(whole[row, -count:, -count:], expected)
    assert (whole[2] == 0).all()


def test_token_types_count(bert: tuple[Any, Path]):
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(bert[1])
    types = {"token_type_ids": np.arange(IDS["input_ids"].size).reshape(IDS["input_ids"].shape) % 3}
    assert_close(model(**IDS, **types).logits, logits_of(bert[0], **IDS, **types))


def test_bert_as_the_hub_has_it_loads(bert: tuple[Any, Path], tmp_path: Path):
    reference, directory = bert
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    old["bert.pooler.dense.weight"] = old["cls.seq_relationship.weight"] = np.zeros((2, 48), np.float32)
    old["bert.embeddings.position_ids"] = np.arange(64)[None]
    copied(directory, tmp_path, position_embedding_type="absolute", gradient_checkpointing=False)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
    assert_close(model(**IDS).logits, logits_of(reference, **IDS))


def test_positions_by_distance_are_refused(bert: tuple[Any, Path], tmp_path: Path):
    directory = copied(bert[1], tmp_path, position_embedding_type="relative_key")
    (directory / "model.safetensors").write_bytes((bert[1] / "model.safetensors").read_bytes())
    with pytest.raises(UnsupportedModelError, match="position_embedding_type is 'relative_key', known: 'absolute'"):
        AutoEasyDeLModelForCausalLM.from_pretrained(directory)


def test_labels_are_wrapped_round_to_begin_with_their_language(tmp_path: Path):
    reference = make_reference(CASES["mbart-tied"], tmp_path)
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path)
    labels = IDS["input_ids"].copy()
    labels[1, -3:] = -100
    assert_close(model(**IDS, labels=labels).logits, logits_of(reference, **IDS, labels=labels))
    assert_close(model(**IDS).logits, logits_of(reference, **IDS))
