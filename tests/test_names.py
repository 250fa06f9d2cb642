"""Tables of names: one pass, in any order, with and without the prefix, extended in every field."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import transformers
from bad_inputs.valid import write_safetensors
from cases import Case, all_cases
from safetensors.numpy import load_file, save_file

from easydel import AutoEasyDeLModelForCausalLM, CheckpointError
from easydel.checkpoint import open_checkpoint
from easydel.config import HFConfig
from easydel.families import find_family
from easydel.model import BaseNNXModule
from easydel.policy import Policy
from easydel.tree import flatten
from easydel.weights.expressions import Reshape, Source, Stack, Transpose, source_names
from easydel.weights.names import CHECKPOINT_LEAVES, QKV, Fused, Names, one_row
from easydel.weights.plan import Plan, make_plan

FIRST = {(case.model_type, case.seq2seq): case for case in reversed(all_cases())}


def model_of(case: Case) -> BaseNNXModule:
    found = find_family(case.model_type, encoder_decoder=case.seq2seq)
    settings = transformers.AutoConfig.for_model(case.model_type, **case.config).to_dict()
    config = found.configured(HFConfig(settings))
    record, names = found.record(config)
    return BaseNNXModule(record, config, Policy(), names)


def tensor_names(model: BaseNNXModule, names: Names) -> list[str]:
    shapes = {path: leaf.shape for path, leaf in flatten(model.params).items()}
    return list(source_names({path: names.expression(path, shapes) for path in shapes}))


@pytest.mark.parametrize("case", FIRST.values(), ids=lambda case: case.name)
def test_the_order_of_a_familys_renames_means_nothing(case: Case):
    model = model_of(case)
    names = model.names
    expected = tensor_names(model, names)
    rows = list(names.renames.items())
    for seed in range(3):
        Random(seed).shuffle(rows)
        assert tensor_names(model, replace(names, renames=dict(rows))) == expected


def test_what_a_rename_makes_is_not_renamed_again():
    names = Names({"a": "b", "b": "c", "d": "a.b"})
    assert names.theirs("a.b.d.x") == "b.c.a.b.x"


def test_the_longest_row_counts_wherever_it_stands():
    rows = {"mlp": "ffn", r"mlp\.gate": "router", "mlp.gate.bias": "bias", "(q|k)_proj": r"to_\1"}
    for table in (rows, dict(reversed(rows.items()))):
        names = Names(table)
        assert names.theirs("mlp.gate.bias") == "bias"
        assert names.theirs("mlp.gate.kernel") == "router.kernel"
        assert names.theirs("mlp.gate_proj.bias") == "ffn.gate_proj.bias"
        assert names.theirs("x.q_proj.mlp") == "x.to_q.ffn"


def test_parts_are_fused_within_one_tower_alone():
    names = Names(fused=(Fused("self_attn.qkv", QKV, within="model.decoder"),))
    shapes = {
        f"model/{tower}/layers/7/{part.replace('.', '/')}/kernel": (4, 6)
        for tower in ("encoder", "decoder")
        for part in QKV
    }
    found = list(source_names({path: names.expression(path, shapes) for path in shapes}))
    assert [name.removeprefix("model.encoder.layers.7.self_attn.") for name in found[:3]] == [
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
    ]
    assert set(found[3:]) == {"model.decoder.layers.7.self_attn.qkv.weight"}


def test_two_rows_for_the_same_parts_are_refused():
    with pytest.raises(AssertionError, match="two rows for mlp"):
        Names({"mlp": "ffn", "ml[p]": "other"}).theirs("mlp.x")


def test_a_row_can_leave_parts_out_and_see_past_numbers():
    names = Names({"self_attn": "", r"encoder\.layers\.\*\.mlp": "enc.*.ff"}, prefix="")
    assert names.theirs("model.layers.12.self_attn.weight") == "layers.12.weight"
    assert names.theirs("model.encoder.layers.3.mlp.up.7.weight") == "enc.3.ff.up.7.weight"


def test_numbers_of_layers_and_experts_come_back_as_they_were():
    names, shape = Names({"experts": "moe"}), {"model/layers/10/mlp/experts/up_proj/kernel": (12, 3, 2)}
    (path,) = shape
    expression = names.expression(path, shape)
    assert isinstance(expression, Stack)
    assert expression.of[11] == Source("model.layers.10.mlp.moe.11.up_proj.weight")


def test_every_field_can_be_extended():
    other = Names(
        {"x": "y"},
        (Fused("self_attn.qkv", QKV),),
        ("t",),
        True,
        ("i",),
        {"extra": "e"},
        {"r": one_row},
        {"s": ("u",)},
        ("o",),
        ("l",),
        ("f",),
        "bert",
    )
    more = {field.name: getattr(other, field.name) for field in fields(Names)}
    assert {name: getattr(Names().extended(**more), name) for name in more} == more | {
        "leaves": {**CHECKPOINT_LEAVES, "extra": "e"}
    }
    twice = other.extended({"z": "w"}, transposed=("v",))
    assert (twice.renames, twice.transposed, twice.prefix) == ({"x": "y", "z": "w"}, ("t", "v"), "bert")


def test_an_extension_takes_the_place_of_what_was_there():
    assert Names({"a": "b"}).extended({"a": "c"}).theirs("a.x") == "c.x"


def test_tensors_of_other_shapes_are_reshaped_before_they_are_transposed():
    def flat(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * shape[1], shape[2])

    names = Names(
        {r"experts\.(\w+)_proj\.weight": r"experts.\1"},
        stacked_experts=True,
        transposed=("experts.down",),
        reshaped={"experts.up": flat, "experts.down": flat, "mix": lambda shape: (1, 1, *shape)},
    )
    shapes = {"experts/up_proj/kernel": (4, 6, 5), "experts/down_proj/kernel": (4, 5, 6), "mix/scale": (5,)}
    up, down, mix = (names.expression(path, shapes) for path in shapes)
    assert up == Reshape(Source("experts.up"), (24, 5), (4, 6, 5))
    assert down == Transpose(Reshape(Source("experts.down"), (24, 5), (4, 6, 5)))
    assert mix == Reshape(Source("mix.weight"), (1, 1, 5), (5,))


SHAPES = {"model/embed_tokens/embedding": (7, 4), "model/norm/scale": (4,), "lm_head/kernel": (7, 4)}
BERT = Names(prefix="bert")


def plan_of(directory: Path, names: list[str]) -> Plan:
    shapes = [(4,) if "norm" in name else (7, 4) for name in names]
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in zip(names, shapes, strict=True)},
        directory / "m.safetensors",
    )
    tensors = open_checkpoint([directory / "m.safetensors"])
    return make_plan(SHAPES, {path: [path] for path in SHAPES}, BERT, tensors, tied=False)


@pytest.mark.parametrize("before", ["bert.", "", "language_model.bert.", "bert.language_model."])
def test_the_body_is_found_with_its_prefix_and_without(tmp_path: Path, before: str):
    head = "language_model.lm_head" if before.startswith("language") else "lm_head"
    names = [f"{before}embed_tokens.weight", f"{before}norm.weight", f"{head}.weight"]
    assert sorted(tensor.name for tensor in plan_of(tmp_path, names).tensors.values()) == sorted(names)


def test_another_familys_prefix_is_not_guessed(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"bert\.norm\.weight is missing"):
        plan_of(tmp_path, ["transformer.embed_tokens.weight", "transformer.norm.weight", "lm_head.weight"])


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model."])
def test_the_name_of_a_tool_that_all_tensors_share_is_left_out(tmp_path: Path, wrapper: str):
    write_safetensors(tmp_path)
    file = tmp_path / "model.safetensors"
    expected = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)[1])
    expected = {path: np.array(leaf) for path, leaf in expected.items()}
    tensors = {name: np.array(tensor) for name, tensor in load_file(file).items()}
    save_file({wrapper + name: tensor for name, tensor in tensors.items()}, file)
    found = flatten(AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)[1])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], leaf) for path, leaf in expected.items())
    save_file({name if "norm" in name else wrapper + name: tensor for name, tensor in tensors.items()}, file)
    if wrapper == "_orig_mod.":  # no model's own name: parts of a model may be compiled alone
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
        return
    with pytest.raises(CheckpointError, match="has no place in the model"):
        AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path)
