"""Models whose parameters are stored by codes: over any mesh, scanned, saved, exported, adapted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from coded_files import FORMS, Checkpoint, write_checkpoint
from gguf_files import TINY, write_gguf

from easydel import AutoEasyDeLModelForCausalLM
from easydel.errors import CheckpointError
from easydel.forms import CODES, Form
from easydel.lora import LoRA, add_adapters, merge_adapters
from easydel.model import BaseNNXModule
from easydel.quantize import rounded_blocks
from easydel.sharding import make_mesh
from easydel.stored import forms_of, storable
from easydel.tree import flatten, unflatten
from easydel.weights.export import Parameters
from easydel.weights.saved import MANIFEST, Manifest, read_manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(tmp_path_factory.mktemp("codes"))


def load(directory: Path, **choices: Any) -> BaseNNXModule:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory, from_torch=False, **choices)[0]


def weights_of(model: BaseNNXModule) -> dict[str, np.ndarray]:
    """The parameters, layer by layer and as floats, whatever they are stored as."""
    found = Parameters(flatten(model.params), model.canonical_paths(), forms_of(model), dequantized=True)
    return {path: found[path] for path in found.shapes()}


TP2 = {"sharding_axis_dims": (1, 1, 2, -1), "auto_shard_params": True}
FSDP4 = {"sharding_axis_dims": (1, 4, 1, 1), "auto_shard_params": True}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("mesh", [{}, TP2, FSDP4], ids=["one device", "tp 2", "fsdp 4"])
def test_parameters_stay_codes_over_any_mesh_and_mean_the_same(checkpoint: Checkpoint, mesh: Any, scan: bool):
    model = load(checkpoint.codes, scan_layers=scan, **mesh)
    found = weights_of(model)
    assert found.keys() == checkpoint.weights.keys()
    for path, wanted in checkpoint.weights.items():
        np.testing.assert_allclose(found[path], wanted, rtol=1e-6, atol=1e-7, err_msg=path)
    leaves = flatten(model.params)
    assert {forms_of(model)[path].code for path in forms_of(model)} == {form.code for form in FORMS.values()}
    assert forms_of(model).keys() == storable(model).keys()
    assert model.num_params() == sum(array.size for array in checkpoint.weights.values())
    for path in forms_of(model) if mesh else ():
        spec = leaves[path].sharding.spec
        assert leaves[f"{path}_scale"].sharding.spec == type(spec)(*spec[: leaves[f"{path}_scale"].ndim])


@pytest.fixture(scope="module")
def logits(checkpoint: Checkpoint) -> np.ndarray:
    return np.asarray(load(checkpoint.floats)(IDS).logits)


IDS = np.random.default_rng(1).integers(0, 96, (2, 8))


@pytest.mark.parametrize("how", [{}, {**TP2, "scan_layers": True, "remat": True}], ids=["looped", "tp 2, scanned"])
def test_a_model_of_codes_computes_what_its_floats_do(checkpoint: Checkpoint, logits: np.ndarray, how: dict[str, Any]):
    found = load(checkpoint.codes, **how)(IDS).logits
    np.testing.assert_allclose(found, logits, atol=2e-5 * float(np.abs(logits).max()))


def test_a_model_of_codes_that_is_split_after_loading_computes_the_same(checkpoint: Checkpoint, logits: np.ndarray):
    found = load(checkpoint.codes).to(make_mesh((1, 1, 2, -1)))(IDS).logits
    np.testing.assert_allclose(found, logits, atol=2e-5 * float(np.abs(logits).max()))


def test_saving_again_and_exporting_lose_nothing(checkpoint: Checkpoint, tmp_path: Path):
    model = load(checkpoint.codes, scan_layers=True)
    model.save_pretrained(tmp_path / "again")
    first, again = (flatten(load(path).params) for path in (checkpoint.codes, tmp_path / "again"))
    assert first.keys() == again.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(*(np.atleast_1d(one).view(np.uint8) for one in (again[path], leaf)))
    model.export(tmp_path / "exported")
    exported = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "exported")[0]
    for path, leaf in flatten(exported.params).items():
        np.testing.assert_allclose(leaf, checkpoint.weights[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_dequantized_parameters_are_floats_of_the_wanted_dtype(checkpoint: Checkpoint):
    model = load(checkpoint.codes, dequantize=True, param_dtype=jnp.bfloat16)
    for path, leaf in flatten(model.params).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, checkpoint.weights[path].astype(jnp.bfloat16), err_msg=path)


def test_adapters_train_on_codes_and_merge_into_floats(checkpoint: Checkpoint):
    model = load(checkpoint.codes)
    params = add_adapters(model, LoRA(r=2, target_modules=["q_proj", "o_proj"]))
    leaves, path = flatten(params), "model/layers/0/self_attn/o_proj"
    lora = np.random.default_rng(0).standard_normal(leaves[f"{path}/lora_B"].shape).astype(np.float32)
    leaves[f"{path}/lora_B"] = jnp.asarray(lora)
    merged = flatten(merge_adapters(model, unflatten(leaves)))
    assert f"{path}/kernel_offset" not in merged
    update = 4 * lora @ np.asarray(leaves[f"{path}/lora_A"])
    np.testing.assert_allclose(merged[f"{path}/kernel"], checkpoint.weights[f"{path}/kernel"] + update, atol=1e-5)


@pytest.mark.parametrize("how", [{}, TP2, {**FSDP4, "scan_layers": True}], ids=["one device", "tp 2", "fsdp 4"])
def test_floats_are_loaded_in_4_bits_whatever_the_sharding(checkpoint: Checkpoint, how: dict[str, Any]):
    model = load(checkpoint.floats, load_in_4bit=True, **how)
    codes = {path.split("/")[-2]: form.code.name for path, form in forms_of(model).items()}
    assert codes.pop("embed_tokens") == codes.pop("lm_head") == "int8"
    assert set(codes.values()) == {"int4"}
    for path, found in weights_of(model).items():
        wanted = checkpoint.weights[path]
        if not path.endswith("proj/kernel"):
            continue
        values, scales = rounded_blocks(wanted, 16 if "down_proj" in path else 64)
        block = wanted.shape[-1] // scales.shape[-1]
        np.testing.assert_array_equal(found, values * np.repeat(scales.astype(np.float32), block, -1), err_msg=path)
    size = sum(leaf.nbytes for path, leaf in flatten(model.params).items() if "down_proj" in path)
    assert size == 2 * 4 * 64 * 48 * (4 + 16 / (8 if how == TP2 else 16)) / 8  # blocks that no shard cuts


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"code": "int5"}, "not a manifest"),
        ({"block": [0, 4]}, "not a manifest"),
        ({"table": [1.0, 2.0]}, "not a manifest"),
        ({"block": [1, 8]}, r"has .*kernel_scale of \[2, 4\]|expected"),
        ({"shift": "zero"}, "lacks codes, scales or offsets"),
        ({"step": 3}, "has blocks of 32 rows 3 apart, which do not fill 64 rows"),
    ],
)
def test_a_manifest_that_lies_is_refused(checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any], told: str):
    for file in checkpoint.codes.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["forms"]["model/layers/0/self_attn/q_proj/kernel"] |= change
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=told):
        load(tmp_path)


@pytest.mark.parametrize(("step", "version"), [(1, 2), (6, 3)])
def test_only_rows_that_lie_apart_are_kept_from_versions_that_cannot_read_them(step: int, version: int, tmp_path: Path):
    manifest = Manifest((), {"kernel": Form(CODES["uint4"], (8, 1), (), "zero", step=step)})
    manifest.write(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == version
    assert read_manifest(tmp_path) == manifest


def test_a_saved_int8_model_becomes_floats_if_wanted(checkpoint: Checkpoint, tmp_path: Path):
    int8 = load(checkpoint.floats, load_in_8bit=True)
    int8.save_pretrained(tmp_path / "int8")
    floats = load(tmp_path / "int8", dequantize=True)
    assert not forms_of(floats)
    wanted = weights_of(int8)
    for path, leaf in flatten(floats.params).items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


def test_blocks_of_gguf_stay_if_wanted(tmp_path: Path):
    def blocks(name: str, array: np.ndarray) -> Any:
        other = name.startswith("blk.1.attn_output")
        kind = gguf.GGMLQuantizationType.Q4_1 if other else gguf.GGMLQuantizationType.Q8_0
        wide = array.ndim == 2 and array.shape[-1] % 32 == 0
        return (gguf.quants.quantize(array.astype(np.float32), kind), kind) if wide else None

    file = write_gguf(tmp_path / "m.gguf", TINY["llama-3.2"], change=blocks)
    kept, _ = AutoEasyDeLModelForCausalLM.from_pretrained(file, dequantize=False)
    floats, _ = AutoEasyDeLModelForCausalLM.from_pretrained(file)
    assert not forms_of(floats)
    assert {(form.code.name, form.block[0]) for form in forms_of(kept).values()} == {("int8", 1), ("uint4", 1)}
    scanned, _ = AutoEasyDeLModelForCausalLM.from_pretrained(file, dequantize=False, scan_layers=True)
    assert forms_of(scanned) == forms_of(kept), "layers of several types are not stacked"
    found = weights_of(kept)
    for path, leaf in flatten(floats.params).items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-6, atol=1e-9, err_msg=path)
