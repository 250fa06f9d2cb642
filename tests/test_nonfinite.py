"""Loading finds NaN and Inf among weights, wherever they are and however they are read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from bad_inputs.valid import WEIGHTS, Q, header, payload, safetensors, tensors, write_config, write_safetensors
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM, CheckpointError
from easydel.checkpoint.tensor import has_nonfinite
from easydel.source import open_source
from easydel.weights.formats.finite import check_scales
from easydel.weights.formats.matrix import Turned

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("largest", [1.9, 400])
def test_one_bad_value_is_found_in_every_dtype(dtype: Any, bad: float, largest: float):
    values = np.concatenate([np.linspace(-largest, largest, 301), np.zeros(1)]).astype(dtype)
    assert not has_nonfinite(values)
    for place in (0, 150, 301):
        spoiled = values.copy()
        spoiled[place] = bad
        assert has_nonfinite(spoiled)
        assert has_nonfinite(spoiled[::-1])
        assert has_nonfinite(spoiled.reshape(2, 151).T)


def test_the_largest_numbers_are_finite():
    for dtype in FLOATS:
        top = ml_dtypes.finfo(dtype).max
        assert not has_nonfinite(np.array([top, -top], dtype))


def test_integers_are_finite():
    assert not has_nonfinite(np.array([-1, 127], np.int8))


def spoil(directory: Path, *values: float) -> None:
    """One value in the middle of the q kernel, and one in a norm."""
    write_config(directory)
    arrays = tensors()
    arrays[Q][11, 7] = values[0]
    arrays["model.norm.weight"][3] = values[-1]
    data = b"".join(array.tobytes() for array in arrays.values())
    (directory / WEIGHTS).write_bytes(safetensors(header(), data))


def load(directory: Path, **arguments: Any) -> Any:
    return AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"param_dtype": jnp.bfloat16}, {"load_in_8bit": True}, {"auto_shard_params": True}, {"scan_layers": True}],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_tensor_with_bad_values_is_named(tmp_path: Path, value: float, arguments: dict[str, Any]):
    spoil(tmp_path, value)
    with pytest.raises(CheckpointError, match=r"NaN or Inf[^$]*NaN or Inf[^$]*allow_nonfinite=True") as caught:
        load(tmp_path, **arguments)
    assert caught.value.file == str(tmp_path / WEIGHTS)
    assert Q in str(caught.value)
    assert "model.norm.weight" in str(caught.value)


@pytest.mark.parametrize("method", ["save_pretrained", "export"])
def test_allow_nonfinite_loads_and_saves_them(tmp_path: Path, method: str):
    spoil(tmp_path, np.nan)
    model, params = load(tmp_path, allow_nonfinite=True)
    assert np.isnan(params["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"]).sum() == 1
    with pytest.raises(CheckpointError, match=r"NaN or Inf.*allow_nonfinite") as caught:
        getattr(model, method)(tmp_path / "saved")
    assert caught.value.file == str(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    getattr(model, method)(tmp_path / "saved", allow_nonfinite=True)
    load(tmp_path / "saved", from_torch=method == "export", allow_nonfinite=True)


def test_an_export_whose_dtype_cannot_hold_the_weights_leaves_what_was_there(tmp_path: Path):
    write_safetensors(tmp_path)
    model, params = load(tmp_path)
    model.export(tmp_path / "out", dtype="float16")
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    params["model"]["norm"]["scale"] = params["model"]["norm"]["scale"].at[3].set(70000.0)
    problem = r"tensor 'model.norm.weight': 1 values do not fit into float16; use dtype=bfloat16"
    for allow_nonfinite in (False, True):
        with pytest.raises(CheckpointError, match=problem) as caught:
            model.export(tmp_path / "out", params, dtype="float16", allow_nonfinite=allow_nonfinite)
        assert caught.value.file == str(tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
    model.export(tmp_path / "out", params, dtype="bfloat16")


def test_scales_that_are_no_numbers_are_found_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    formats = Path(__file__).parent / "formats"
    for kind, name in (("awq_gemm_g128_llama", ".scales"), ("bnb_nf4_double_llama", ".nested_absmax")):
        shutil.copytree(formats / kind, tmp_path / kind)
        file = tmp_path / kind / WEIGHTS
        arrays = load_file(file)
        for key in [key for key in arrays if key.endswith(name)][:2]:
            arrays[key].reshape(-1)[-1] = np.nan
        save_file(arrays, file)
        with monkeypatch.context() as patched:
            patched.setattr("easydel.loading.execute", None)
            with pytest.raises(CheckpointError) as caught:
                load(tmp_path / kind)
        assert re.search(rf"2 problems[^$]*{name}'[^$]*{name}'[^$]*allow_nonfinite=True", str(caught.value))
        assert caught.value.file == str(file)
        assert load(tmp_path / kind, allow_nonfinite=True)


def test_each_of_several_processes_looks_at_its_share_of_the_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Together they look at all; where one fails, all do."""
    kind, name = "awq_gemm_g128_llama", ".scales"
    shutil.copytree(Path(__file__).parent / "formats" / kind, tmp_path / kind)
    arrays = load_file(tmp_path / kind / WEIGHTS)
    for key in (spoiled := [key for key in arrays if key.endswith(name)]):
        arrays[key].reshape(-1)[-1] = np.nan
    save_file(arrays, tmp_path / kind / WEIGHTS)
    found = [
        tensor.turned if isinstance(tensor, Turned) else tensor
        for tensor in open_source(tmp_path / kind, saved=False).tensors.values()
    ]
    told = []
    for process in range(3):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        monkeypatch.setattr("jax.process_count", lambda: 3)
        with pytest.raises(CheckpointError) as caught:
            check_scales(found)
        told.append(int(re.search(r"(\d+) problems", str(caught.value))[1]))
    assert sum(told) == len(spoiled)
    assert max(told) - min(told) <= 1


def test_mapped_files_of_others_are_checked_and_our_own_were(tmp_path: Path):
    write_safetensors(tmp_path)
    text = header()
    raw = safetensors(text, b"")
    aligned = raw + b" " * (-len(raw) % 4096)
    aligned = (len(aligned) - 8).to_bytes(8, "little") + aligned[8:]
    data = bytearray(payload())
    data[:4] = np.float32(np.nan).tobytes()
    (tmp_path / WEIGHTS).write_bytes(aligned + bytes(data))
    model, _ = load(tmp_path, allow_nonfinite=True)
    assert model.load_report.bytes_mapped > 0
    with pytest.raises(CheckpointError, match=r"embed_tokens.*NaN or Inf"):
        load(tmp_path)
