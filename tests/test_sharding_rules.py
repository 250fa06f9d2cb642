"""Partition axes and the rules made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec as P

from easydel.errors import ShardingError
from easydel.sharding import (
    AXES,
    PartitionAxis,
    bytes_per_device,
    default_rules,
    make_mesh,
    match_rules,
    shardings,
    spec_for,
)

HIDDEN = ("fsdp", "sp")
CUSTOM = ("data", "shard", "model", "seq")


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(ShardingError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# PartitionAxis


def test_default_axes_on_the_default_mesh_stay_as_they_are():
    assert PartitionAxis().resolve(AXES) == PartitionAxis()


def test_default_axes_map_by_position_to_a_mesh_with_other_names():
    resolved = PartitionAxis().resolve(CUSTOM)
    assert resolved.batch_axis == ("data", "shard")
    assert resolved.hidden_axis == ("shard", "seq")
    assert (resolved.head_axis, resolved.sequence_axis) == ("model", "seq")
    assert resolved.expert_axis == ("shard", "seq")


def test_default_axes_that_the_mesh_lacks_drop():
    resolved = PartitionAxis().resolve(("data", "model"))
    assert (resolved.batch_axis, resolved.hidden_axis) == (("data", "model"), "model")
    assert (resolved.head_axis, resolved.sequence_axis) == (None, None)


def test_a_default_name_is_never_taken_for_another():
    resolved = PartitionAxis().resolve(("tp", "dp"))
    assert (resolved.batch_axis, resolved.head_axis, resolved.hidden_axis) == ("dp", "tp", None)


def test_changing_one_field_leaves_the_others_to_follow_the_mesh():
    resolved = PartitionAxis(kv_head_axis=None, expert_axis="shard").resolve(CUSTOM)
    assert (resolved.kv_head_axis, resolved.expert_axis, resolved.head_axis) == (None, "shard", "model")


def test_every_changed_field_that_names_a_missing_axis_is_listed():
    message = refusal(PartitionAxis(head_axis="heads", expert_axis=("tp", "ep")).resolve, ("dp", "fsdp", "tp"))
    assert "head_axis='heads'" in message
    assert "expert_axis=('tp', 'ep')" in message
    assert "['dp', 'fsdp', 'tp']" in message
    assert "sequence_axis" not in message


def test_renaming_keeps_what_the_mapping_lacks():
    renamed = PartitionAxis(expert_axis="ep").renamed({"dp": "data", "tp": "model"})
    assert (renamed.batch_axis, renamed.head_axis, renamed.expert_axis) == (("data", "fsdp"), "model", "ep")


def test_malformed_axes_are_all_listed():
    message = refusal(PartitionAxis, batch_axis=["dp"], head_axis=3, mlp_axis=("tp", "tp"), vocab_axis="")
    assert all(name in message for name in ("batch_axis=['dp']", "head_axis=3", "mlp_axis=('tp', 'tp')", "vocab_axis="))


@given(st.lists(st.sampled_from((*AXES, *CUSTOM)), max_size=6, unique=True))
def test_resolving_names_only_axes_of_the_mesh_and_twice_changes_nothing(names: list[str]):
    resolved = PartitionAxis().resolve(names)
    specs = [spec for _, spec in default_rules(resolved)]
    assert {name for spec in specs for entry in spec if entry for name in np.atleast_1d(entry)} <= set(names)
    assert resolved.resolve(names) == resolved


# rules

CANONICAL = {
    "model/embed_tokens/embedding": ("tp", HIDDEN),
    "model/embed_positions/embedding": (None, HIDDEN),
    "lm_head/kernel": ("tp", HIDDEN),
    "lm_head/bias": ("tp",),
    "model/layers/0/self_attn/q_proj/kernel": ("tp", HIDDEN),
    "model/layers/0/self_attn/k_proj/kernel": ("kv", HIDDEN),
    "model/layers/0/self_attn/v_proj/bias": ("kv",),
    "model/layers/0/self_attn/o_proj/kernel": (HIDDEN, "tp"),
    "model/layers/0/self_attn/o_proj/bias": (None,),
    "model/layers/0/self_attn/q_norm/scale": (None,),
    "model/layers/0/self_attn/sinks": (None,),
    "model/layers/0/self_attn/q_a_proj/kernel": (None, HIDDEN),
    "model/layers/0/self_attn/q_b_proj/kernel": ("tp", HIDDEN),
    "model/layers/0/self_attn/kv_a_proj_with_mqa/kernel": (None, HIDDEN),
    "model/layers/0/self_attn/kv_b_proj/kernel": ("tp", HIDDEN),
    "model/layers/0/mlp/gate_proj/kernel": ("tp", HIDDEN),
    "model/layers/0/mlp/up_proj/bias": ("tp",),
    "model/layers/0/mlp/down_proj/kernel": (HIDDEN, "tp"),
    "model/layers/0/mlp/down_proj/bias": (None,),
    "model/layers/0/mlp/gate/kernel": (None, HIDDEN),
    "model/layers/0/mlp/experts/gate_proj/kernel": ("ep", "tp", HIDDEN),
    "model/layers/0/mlp/experts/up_proj/bias": ("ep", "tp"),
    "model/layers/0/mlp/experts/down_proj/kernel": ("ep", HIDDEN, "tp"),
    "model/layers/0/mlp/experts/down_proj/bias": ("ep", None),
    "model/layers/0/mlp/shared_expert/down_proj/kernel": (HIDDEN, "tp"),
    "model/layers/0/input_layernorm/scale": (None,),
    "model/decoder/layers/1/cross_attn/k_proj/kernel": ("kv", HIDDEN),
    "model/encoder/layers/0/self_attn/relative_attention_bias/embedding": (None, "tp"),
    "model/layers/0/mixer/in_proj/kernel": ("tp", HIDDEN),
    "model/layers/0/mixer/x_proj/kernel": (None, "tp"),
    "model/layers/0/mixer/dt_proj/kernel": ("tp", None),
    "model/layers/0/mixer/dt_proj/bias": ("tp",),
    "model/layers/0/mixer/out_proj/kernel": (HIDDEN, "tp"),
    "model/layers/0/mixer/conv1d/kernel": (None, None, None),
    "model/layers/0/mixer/conv1d/bias": (None,),
    "model/layers/0/mixer/A_log": (None, None),
    "model/layers/0/mixer/dt_bias": (None,),
    "model/norm/bias": (None,),
}


@pytest.mark.parametrize("path", CANONICAL)
def test_built_in_rules_split_each_parameter_as_intended(path: str):
    expected, rules = CANONICAL[path], default_rules(PartitionAxis(kv_head_axis="kv", expert_axis="ep"))
    shape = (6,) * len(expected)
    assert tuple(spec_for(path, shape, rules)) == expected
    stacked = path.replace("layers/0/", "layers/").replace("layers/1/", "layers/")
    assert tuple(spec_for(stacked, (4, *shape), rules)) == (None, *expected)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("layers/q_proj/kernel_scale", (6,), ("tp",)),
        ("layers/q_proj/kernel_scale", (4, 6), (None, "tp")),
        ("layers/down_proj/kernel_scale", (6,), (HIDDEN,)),
        ("layers/experts/up_proj/kernel_scale", (4, 6), ("ep", "tp")),
        ("layers/experts/down_proj/kernel_scale", (3, 4, 6), (None, "ep", HIDDEN)),
        ("embed_tokens/embedding_scale", (97,), ("tp",)),
        ("embed_positions/embedding_scale", (97,), (None,)),
        ("gate/kernel_scale", (6,), (None,)),
    ],
)
def test_an_int8_scale_is_split_as_the_rows_it_scales(path, shape, spec):
    assert tuple(spec_for(path, shape, default_rules(PartitionAxis(expert_axis="ep")))) == spec


def test_user_rules_for_kernels_serve_their_scales_but_a_rule_of_their_own_wins():
    rules = [(r"k_proj/kernel_scale$", P()), (r"kernel$", P("tp", "fsdp"))]
    assert tuple(spec_for("q_proj/kernel_scale", (6,), rules)) == ("tp",)
    assert tuple(spec_for("k_proj/kernel_scale", (6,), rules)) == (None,)


def test_the_first_rule_that_is_found_counts():
    rules = [("q_proj", P("tp")), ("kernel", P("fsdp", None))]
    assert tuple(spec_for("a/q_proj/kernel", (2, 3), rules)) == (None, "tp")
    assert tuple(spec_for("a/k_proj/kernel", (2, 3), rules)) == ("fsdp", None)


def test_no_rule_names_a_mesh_axis_twice_and_hidden_yields():
    rules = default_rules(PartitionAxis(expert_axis="tp", mlp_axis=("tp", "sp"), vocab_axis="fsdp"))
    assert tuple(spec_for("experts/up_proj/kernel", (2, 2, 2), rules)) == ("tp", "sp", "fsdp")
    assert tuple(spec_for("mlp/up_proj/kernel", (2, 2), rules)) == (("tp", "sp"), "fsdp")
    assert tuple(spec_for("mlp/down_proj/kernel", (2, 2), rules)) == ("fsdp", ("tp", "sp"))
    assert tuple(spec_for("embed_tokens/embedding", (2, 2), rules)) == ("fsdp", "sp")


def test_all_parameters_that_no_rule_fits_are_listed():
    shapes = {"a/kernel": (2, 2), "b/bias": (3,), "c/scale": (5,), "d/bias": (2, 2)}
    message = refusal(match_rules, shapes, [("kernel", P("tp")), ("bias", P(None, "tp"))])
    assert "no partition rule matches c/scale (5,)" in message
    assert "b/bias (3,)" in message
    assert "'bias' has 2 entries" in message
    assert "a/kernel" not in message
    assert "d/bias" not in message


def test_malformed_rules_are_all_listed():
    rules = [("(", P()), ("a", ("tp",)), ("b", P("tp", "tp")), ("c", P(P.UNCONSTRAINED)), ("d",), (3, P())]
    message = refusal(match_rules, {"a": (2,)}, rules)
    assert message.startswith("6 problems")
    for part in ("'('", "'a'", "['tp'] more than once", "'c'", "('d',)", "rule 3"):
        assert part in message


DIMS = st.integers(1, 24)
MESHES = [(1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 4, 2), (1, 3, 2, 1), (1, 1, 1, 1)]


@settings(deadline=None, max_examples=40)
@given(
    dims=st.sampled_from(MESHES),
    sizes=st.fixed_dictionaries({path: st.tuples(*[DIMS] * len(spec)) for path, spec in CANONICAL.items()}),
    axes=st.sampled_from([PartitionAxis(), PartitionAxis(expert_axis="fsdp", head_axis=("tp", "sp"), batch_axis=None)]),
)
def test_every_sharding_of_the_built_in_rules_tiles_its_array(dims, sizes, axes):
    mesh = make_mesh(dims)
    placed, losses = shardings(sizes, mesh, default_rules(axes), strict=False)
    rows = bytes_per_device({p: jax.ShapeDtypeStruct(s, jnp.bfloat16) for p, s in sizes.items()}, placed, losses)
    assert {row.path for row in rows} == set(sizes)
    for row in rows:
        shape = sizes[row.path]
        covered = np.zeros(shape, np.int64)
        for index in placed[row.path].devices_indices_map(shape).values():
            covered[index] += 1
            assert covered[index].size * 2 == row.device_bytes
        assert (covered == row.copies).all()
        assert row.total_bytes * row.copies == row.device_bytes * mesh.size
        assert (row.copies > 1) <= bool(row.why)
