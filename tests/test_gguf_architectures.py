"""Every GGUF architecture: a file written as llama.cpp's converter does is the model of the original checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_convert import convert
from gguf_files import TINY
from gguf_rows import ROWS, Row
from gguf_rows_recent import FOLDED, RECENT
from parity import make_reference, random_ids, reference_logits

from easydel import AutoEasyDeLModelForCausalLM
from easydel.checkpoint import open_checkpoint
from easydel.tree import flatten
from easydel.weights.gguf import hf_config, hf_tensors
from easydel.weights.gguf_architectures import gguf_architectures
from easydel.weights.gguf_delta import ByColumns
from easydel.weights.gguf_tensors import AllRows, Joined, LatentKV

ALL = [*ROWS, *RECENT]


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.case.name)
def test_a_file_is_the_model_of_the_checkpoint_it_was_converted_from(tmp_path: Path, row: Row):
    reference = make_reference(row.case, tmp_path)
    file = convert(tmp_path, row.arch, reference.config, tmp_path / "model.gguf", row.metadata)
    expected, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, progress=False)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(file, progress=False)
    assert model.record == expected.record, "the computation"
    found, wanted = flatten(model.params), flatten(expected.params)
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        rounded = 1e-6 if path.endswith("A_log") or "norm" in path else 0  # exponentials, and ones that were added
        np.testing.assert_allclose(found[path], array, rtol=rounded, atol=rounded, err_msg=path)


@pytest.mark.parametrize("row", FOLDED, ids=["normed", "plain"])
def test_a_file_with_constants_in_its_weights_computes_what_the_checkpoint_does(tmp_path: Path, row: Row):
    reference = make_reference(row.case, tmp_path)
    file = convert(tmp_path, row.arch, reference.config, tmp_path / "model.gguf", row.metadata)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(file, progress=False)
    ids = random_ids(row.case)
    np.testing.assert_allclose(model(ids).logits, reference_logits(reference, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "coded", "part"),
    [
        ("qwen3moe", "exps", "experts/"),
        ("chatglm", r"attn_qkv\.weight", "self_attn/[qkv]_proj/"),
        ("dbrx", "exps", "experts/"),
    ],
)
def test_parts_of_a_tensor_keep_their_own_codes(tmp_path: Path, arch: str, coded: str, part: str):
    row = [row for row in ALL if row.arch == arch][-1]
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "moe_intermediate_size": 32, "head_dim": 8}
    sizes |= {"d_model": 64, "n_heads": 8, "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 5, "moe_top_k": 2}}
    config = row.case.config | {key: size for key, size in sizes.items() if key in row.case.config}
    reference = make_reference(replace(row.case, config=config), tmp_path)
    metadata = {key: 32 if key == "feed_forward_length" else value for key, value in row.metadata.items()}
    file = convert(tmp_path, row.arch, reference.config, tmp_path / "model.gguf", metadata, coded)
    floats = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(file, progress=False)[1])
    kept = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(file, progress=False, dequantize=False)[1])
    found = [path for path in kept if re.search(rf"{part}.*kernel$", path)]
    assert len(found) == 3 * reference.config.num_hidden_layers
    for path in found:
        assert kept[path].dtype == np.int8
        scales = np.asarray(kept[f"{path}_scale"], np.float32).reshape(-1, 1)
        values = np.asarray(kept[path]).reshape(-1, 32) * scales
        np.testing.assert_array_equal(values.reshape(floats[path].shape), floats[path], err_msg=path)


def test_every_architecture_is_tested():
    tested = {tiny.arch for tiny in TINY.values()} | {row.arch for row in [*ALL, *FOLDED]}
    assert tested == {arch for names in gguf_architectures().values() for arch in names}
    assert {row.case.model_type for row in ALL} <= gguf_architectures().keys()


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("gpt_oss", Joined),
        ("qwen3_next", Joined),
        ("deepseek_v3", LatentKV),
        ("qwen3_5_text", ByColumns),
        ("dbrx", AllRows),
    ],
)
def test_slices_of_joined_tensors_equal_slices_of_the_whole(tmp_path: Path, model_type: str, kind: type):
    row = next(row for row in ALL if row.case.model_type == model_type)
    file = convert(tmp_path, row.arch, make_reference(row.case, tmp_path).config, tmp_path / "m.gguf", row.metadata)
    checkpoint = open_checkpoint([file])
    tensors = hf_tensors(checkpoint, hf_config(checkpoint.metadata, checkpoint))
    joined = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, kind)}
    assert joined
    for name, tensor in joined.items():
        whole = tensor.read()
        assert whole.shape == tensor.shape, name
        for index in (np.s_[1:3], np.s_[3:3], np.s_[:, 5:12], np.s_[1:2, 4:30:3]):
            index = index if isinstance(index, tuple) else (index,)
            np.testing.assert_array_equal(tensor.read(index), whole[index], err_msg=name)
