"""A model stays the same model when it is stored, split, scanned, rounded or differentiated, whatever it is made of.

These are claims about records and tables of names, so they are tested on cases that have all of those together
(`cover`), and with --all-cases on every case.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from cases import Case, all_cases
from cover import covering, covering_cases, records_of
from loaded import Loaded
from parity import assert_close, kept, logits_of, rows_of
from safetensors.numpy import load_file, save_file
from trained import described

import easydel.weights.read as reading
from easydel.ops.recurrence import CHUNK
from easydel.sharding import default_rules, shardings
from easydel.tree import Tree, flatten, unflatten


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("all_cases")
    cases = all_cases() if every else covering_cases()
    if metafunc.function is test_a_tied_head_stands_for_token_vectors_that_the_file_lacks:
        cases = [case for case in cases if described(case)[0].head.tied and not case.seq2seq]
    if metafunc.function is test_scanned_layers_decode_as_the_loop:
        cases = [case for case in cases if every or not scanned_on_the_mesh(case)]
    if metafunc.function is test_int8_computes_with_what_its_parameters_stand_for and not every:
        cases = covering(cases, records_of)  # which parameters are int8 is decided by classes, not by their choices
    metafunc.parametrize("loaded", cases, ids=lambda case: case.name, indirect=True)


def transformers_class(case: Case) -> Any:
    return transformers.AutoModelForSeq2SeqLM if case.seq2seq else transformers.AutoModelForCausalLM


def test_scanned_layers_decode_as_the_loop(loaded: Loaded):
    model, params = loaded.again(scan_layers=True)
    assert_close(loaded.decoded(model, params), loaded.cached_logits, loaded.mask)


# split over devices


def mesh_dims(case: Case) -> tuple[int, int, int, int]:
    """One of these for each case, chosen by its name: together the cases see all of them."""
    tp = case.tp
    shapes = [(1, 2, tp, -1), (2, 1, tp, -1), (2, -1, tp, 1), (1, -1, tp, 2), (-1, 1, tp, 1), (1, 4, 1, 2)]
    return shapes[sum(case.name.encode()) % len(shapes)]


def scanned_on_the_mesh(case: Case) -> bool:
    """True for half of the cases; the others are split as a loop, and scanned on one device."""
    return sum(case.name.encode()) // 6 % 2 == 0


def test_sharded_logits_equal_transformers(loaded: Loaded):
    scanned = scanned_on_the_mesh(loaded.case)
    mesh = {"auto_shard_params": True, "sharding_axis_dims": mesh_dims(loaded.case)}
    model, params = loaded.again(scan_layers=scanned, **mesh)
    leaves = flatten(params)
    rules = default_rules(model.policy.axes)
    expected, _ = shardings({p: leaf.shape for p, leaf in leaves.items()}, model.policy.mesh, rules, strict=False)
    for path, leaf in leaves.items():
        assert leaf.sharding == expected[path], path
        held = {shard.device: shard.data.shape for shard in leaf.addressable_shards}
        assert set(held.values()) == {expected[path].shard_shape(leaf.shape)}, path
    if not scanned:
        assert_close(model.apply(params, **loaded.inputs).logits, loaded.logits)
    assert_close(loaded.decoded(model, params), loaded.cached_logits, loaded.mask)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
def test_split_parameters_are_those_of_one_device(loaded: Loaded, scan_layers: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "DEALT_BYTES", 1)  # as rows of real sizes are read
    mesh = {"auto_shard_params": True, "sharding_axis_dims": mesh_dims(loaded.case)}
    whole, split = (loaded.again(scan_layers=scan_layers, **how)[1] for how in ({}, mesh))
    assert_same(split, whole)


def assert_same(params: Tree, expected: Tree) -> None:
    leaves, wanted = flatten(params), flatten(expected)
    assert leaves.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(leaves[path], leaf, err_msg=path)


# files


def test_a_tied_head_stands_for_token_vectors_that_the_file_lacks(loaded: Loaded, tmp_path: Path):
    head, embedding = map(loaded.model.names.theirs, ("lm_head.weight", "model.embed_tokens.weight"))
    tensors = load_file(loaded.directory / "model.safetensors")
    tensors[head] = tensors.pop(embedding)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(loaded.directory / "config.json", tmp_path)
    np.testing.assert_array_equal(by_transformers(loaded, tmp_path), loaded.logits)
    assert_same(type(loaded)(loaded.case, tmp_path, None, None, {}).again()[1], loaded.params)


def in_transformers(loaded: Loaded, directory: Path, **choices: Any) -> Any:
    """The checkpoint in `directory` as transformers loads it."""
    auto = transformers_class(loaded.case)
    model = auto.from_pretrained(directory, attn_implementation=loaded.case.attention, **choices).eval()
    for module in model.modules():
        if isinstance(table := getattr(module, "weights", None), torch.Tensor) and table.is_meta:
            # transformers 5.23 leaves the sinusoids of TrOCR without values
            module.weights = module.get_embedding(*table.shape, module.padding_idx).to(model.dtype)
    return model


def by_transformers(loaded: Loaded, directory: Path) -> np.ndarray:
    """Logits of the checkpoint in `directory`."""
    return logits_of(in_transformers(loaded, directory), **loaded.inputs)


def test_transformers_loads_what_is_exported(loaded: Loaded, tmp_path: Path):
    if loaded.case.config.get("zero_expert_num"):
        pytest.skip("transformers 5.23 wants kernels of experts that do nothing; docs/limits.md says so")
    loaded.model.export(tmp_path)
    np.testing.assert_array_equal(by_transformers(loaded, tmp_path), loaded.logits)


def test_scanned_layers_are_exported_one_by_one(loaded: Loaded, tmp_path: Path):
    model, _ = loaded.again(scan_layers=True)
    model.export(tmp_path)
    original, exported = (load_file(folder / "model.safetensors") for folder in (loaded.directory, tmp_path))
    assert exported.keys() == {name for name in original if not name.startswith(loaded.case.not_exported)}
    for name, tensor in exported.items():
        assert tensor.dtype == kept(original[name].dtype)
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)


# numbers


def test_gradients_of_scanned_and_recomputed_layers_are_those_of_torch(loaded: Loaded, tmp_path: Path):
    """Of a random sum of the logits, in every parameter; padding has no part in it. The logits are right, too."""
    if loaded.case.config.get("rescale_every"):
        pytest.skip("transformers divides weights in place, and has the gradients of what that makes")
    padded = not loaded.case.growing_rope
    inputs = loaded.padded if padded else loaded.inputs
    tokens = inputs[loaded.fed]
    weights = np.random.default_rng(5).normal(size=loaded.logits.shape)
    weights = np.where(inputs.get(loaded.mask_name, np.ones_like(tokens))[..., None] == 1, weights, 0).astype(
        np.float32
    )
    model, params = loaded.again(scan_layers=True, remat=True)
    floats, tables = {}, {}
    for path, leaf in flatten(params).items():
        (floats if jnp.issubdtype(leaf.dtype, jnp.floating) else tables)[path] = leaf

    def total(floats: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(unflatten(floats | tables), **inputs).logits
        return jnp.sum(logits * weights), logits

    gradients, logits = jax.jit(jax.grad(total, has_aux=True))(floats)
    ours = unflatten(gradients | tables)
    assert_close(logits, *((loaded.padded_logits, loaded.mask) if padded else (loaded.logits,)))
    model.export(tmp_path / "ours", ours)
    reference = deepcopy(loaded.reference)
    for row, own in zip(rows_of(inputs), weights, strict=True):
        logits = reference(**{name: torch.tensor(value) for name, value in row.items()}).logits[0]
        (logits * torch.tensor(own[-len(logits) :])).sum().backward()
    save_gradients(reference, tmp_path / "theirs")
    mine, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    trained = {name: theirs[name] for name in mine if not np.isnan(theirs[name]).any()}
    top = max(np.abs(gradient).max() for gradient in trained.values())
    for name, gradient in trained.items():
        # some are zero but for rounding: softmax does not see what is added to all keys
        allowed = 2e-4 * np.abs(gradient).max() + 1e-6 * top
        assert np.abs(mine[name] - gradient).max() <= allowed, name


def save_gradients(model: Any, directory: Path) -> None:
    """Save the model with the gradient of each parameter in its place, and NaN for what has none."""
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.fill_(torch.nan)
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(directory)


def test_bfloat16_is_as_exact_as_in_transformers(loaded: Loaded):
    """By the error of the median token of three texts: of others a rounding may change the experts, there or here."""
    if loaded.case.model_type == "xlstm" and loaded.case.length >= CHUNK:
        pytest.skip("transformers 5.23 computes no chunks in bfloat16: it multiplies them with float32")
    model, params = loaded.again(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    choices = {"dtype": torch.bfloat16, "experts_implementation": "eager"}  # the other one wants wider experts
    theirs = in_transformers(loaded, loaded.directory, **choices)
    errors = []
    for seed in range(3):
        ids = np.random.default_rng(seed).permuted(loaded.inputs[loaded.fed], axis=1)
        inputs = loaded.inputs | {loaded.fed: ids}
        found = np.asarray(model.apply(params, **inputs).logits, np.float32), logits_of(theirs, **inputs)
        exact = logits_of(loaded.reference, **inputs)
        errors.append([np.square(logits - exact).mean(axis=-1) ** 0.5 for logits in found])
    mine, other = np.median(np.array(errors), axis=(0, 2, 3))
    assert mine <= 1.5 * other


def test_int8_computes_with_what_its_parameters_stand_for(loaded: Loaded):
    model, params = loaded.again(load_in_8bit=True)
    leaves = flatten(params)
    whole = {
        path: leaf * leaves[f"{path}_scale"][..., None] if f"{path}_scale" in leaves else leaf
        for path, leaf in leaves.items()
        if not path.endswith("_scale")
    }
    expected = loaded.model.apply(unflatten(whole), **loaded.inputs).logits
    assert_close(model.apply(params, **loaded.inputs).logits, np.asarray(expected))
