"""Every family against transformers: the same logits, however they are computed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from cases import Case, all_cases
from parity import (
    assert_close,
    make_reference,
    padded_mask,
    random_ids,
    reference_cached_logits,
    reference_logits,
    reference_rows,
)
from safetensors.numpy import load_file, save_file

import easydel.weights.read as reading
from easydel import AutoEasyDeLModelForCausalLM, BaseNNXModule
from easydel.sharding import default_rules, shardings
from easydel.tree import flatten

DECODERS = [case for case in all_cases() if not case.seq2seq]


@dataclass
class Loaded:
    case: Case
    directory: Path
    reference: Any
    model: BaseNNXModule
    params: dict[str, Any]
    ids: np.ndarray
    logits: np.ndarray


@pytest.fixture(scope="module", params=DECODERS, ids=lambda case: case.name)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, quick_compilation: None
) -> Iterator[Loaded]:
    case = request.param
    directory = tmp_path_factory.mktemp("model")
    reference = make_reference(case, directory)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    ids = random_ids(case)
    yield Loaded(case, directory, reference, model, params, ids, reference_logits(reference, ids))
    jax.clear_caches()  # hundreds of compiled programs would fill the memory


def test_logits_equal_transformers(loaded: Loaded):
    assert_close(loaded.model(loaded.ids).logits, loaded.logits)


def test_left_padded_logits_equal_transformers(loaded: Loaded):
    mask = padded_mask(*loaded.ids.shape)
    reference = reference_rows if loaded.case.slot_positions else reference_logits
    expected = reference(loaded.reference, loaded.ids, mask)
    assert_close(loaded.model(loaded.ids, mask).logits, expected, mask)


def test_cached_decode_equals_full_forward(loaded: Loaded):
    mask = padded_mask(*loaded.ids.shape)
    cache = loaded.model.init_cache(loaded.ids.shape[0], loaded.case.length + 3)
    start = loaded.case.length - 3
    out = loaded.model(loaded.ids[:, :start], mask[:, :start], cache=cache)
    steps = [np.asarray(out.logits)]
    for token in range(start, loaded.case.length):
        out = loaded.model(loaded.ids[:, token : token + 1], cache=out.cache)
        steps.append(np.asarray(out.logits))
    if loaded.case.growing_rope:
        expected = reference_cached_logits(loaded.reference, loaded.ids, mask, start)
    else:
        expected = np.asarray(loaded.model(loaded.ids, mask).logits)
    assert_close(np.concatenate(steps, axis=1), expected, mask)


def test_scanned_layers_equal_the_loop(loaded: Loaded):
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=True, remat=True)
    assert_close(model.apply(params, loaded.ids).logits, loaded.logits)


def test_sharded_logits_equal_transformers(loaded: Loaded):
    dims = mesh_dims(loaded.case)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(
        loaded.directory, auto_shard_params=True, sharding_axis_dims=dims
    )
    leaves = flatten(params)
    rules = default_rules(model.policy.axes)
    expected, _ = shardings({p: leaf.shape for p, leaf in leaves.items()}, model.policy.mesh, rules, strict=False)
    for path, leaf in leaves.items():
        assert leaf.sharding == expected[path], path
        held = {shard.device: shard.data.shape for shard in leaf.addressable_shards}
        assert set(held.values()) == {expected[path].shard_shape(leaf.shape)}, path
    assert_close(model.apply(params, loaded.ids).logits, loaded.logits)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
def test_split_parameters_are_those_of_one_device(loaded: Loaded, scan_layers: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "DEALT_BYTES", 1)  # as rows of real sizes are read
    mesh = {"auto_shard_params": True, "sharding_axis_dims": mesh_dims(loaded.case)}
    whole, split = (
        flatten(AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=scan_layers, **how)[1])
        for how in ({}, mesh)
    )
    assert whole.keys() == split.keys()
    for path, leaf in whole.items():
        np.testing.assert_array_equal(split[path], leaf, err_msg=path)


def test_a_tied_head_stands_for_token_vectors_that_the_file_lacks(loaded: Loaded, tmp_path: Path):
    embedding, head = loaded.reference.get_input_embeddings(), loaded.reference.get_output_embeddings()
    if embedding.weight is not head.weight:
        pytest.skip("not tied")
    name = next(name for name, parameter in loaded.reference.named_parameters() if parameter is embedding.weight)
    tensors = load_file(loaded.directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(loaded.directory / "config.json", tmp_path)
    auto = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path, attn_implementation=loaded.case.attention).eval()
    np.testing.assert_array_equal(reference_logits(theirs, loaded.ids), loaded.logits)
    leaves = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)[1])
    assert leaves.keys() == flatten(loaded.params).keys()
    for path, leaf in flatten(loaded.params).items():
        np.testing.assert_array_equal(leaves[path], leaf, err_msg=path)


def mesh_dims(case: Case) -> tuple[int, int, int, int]:
    """One of these for each case, chosen by its name: together the families see all of them."""
    tp = case.tp
    shapes = [(1, 2, tp, -1), (2, 1, tp, -1), (2, -1, tp, 1), (1, -1, tp, 2), (-1, 1, tp, 1), (1, 4, 1, 2)]
    return shapes[sum(case.name.encode()) % len(shapes)]


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
def test_exported_checkpoint_is_bit_for_bit_what_transformers_saved(loaded: Loaded, tmp_path: Path, scan_layers: bool):
    model = loaded.model
    if scan_layers:
        model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(loaded.directory, scan_layers=True)
    model.export(tmp_path / "exported")
    original = load_file(loaded.directory / "model.safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == original.keys() - set(loaded.case.not_exported)
    for name, tensor in exported.items():
        assert tensor.dtype == original[name].dtype
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
    if not scan_layers:
        auto = transformers.AutoModelForCausalLM
        again = auto.from_pretrained(tmp_path / "exported", attn_implementation=loaded.case.attention).eval()
        np.testing.assert_array_equal(reference_logits(again, loaded.ids), loaded.logits)
