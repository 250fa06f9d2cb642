"""Meshes, and arrays split over them, on eight virtual devices."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from easydel.errors import ShardingError
from easydel.sharding import (
    AXES,
    PartitionAxis,
    bytes_per_device,
    check_heads,
    constrain,
    default_rules,
    make_mesh,
    shardings,
)
from easydel.sharding.mesh import arranged

RULES = default_rules(PartitionAxis())
HIDDEN = ("fsdp", "sp")
CUSTOM = ("data", "shard", "model", "seq")


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(ShardingError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    return make_mesh(tuple(sizes.values()), tuple(sizes))


def test_importing_starts_no_backend():
    code = (
        "import easydel.sharding; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(), 'backend started'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# make_mesh


@pytest.mark.parametrize(
    ("dims", "sizes"),
    [
        ((1, -1, 1, 1), (1, 8, 1, 1)),
        ((2, 1, -1, 2), (2, 1, 2, 2)),
        ((8, -1, 1, 1), (8, 1, 1, 1)),
        ((1, 2, 3, 1), (1, 2, 3, 1)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((np.int64(2), 2, 2, 1), (2, 2, 2, 1)),
    ],
)
def test_mesh_sizes_are_filled(dims, sizes):
    mesh = make_mesh(dims)
    assert mesh.devices.shape == sizes
    assert list(mesh.devices.flat) == jax.devices()[: math.prod(sizes)]
    assert mesh.axis_names == ("dp", "fsdp", "tp", "sp")
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("dims", "names", "parts"),
    [
        ((3, -1, 1, 1), AXES, ["8 devices", "groups of 3", "[1, 2, 4, 8]"]),
        ((16, -1, 1, 1), AXES, ["groups of 16", "[1, 2, 4, 8]"]),
        ((1, 4, 3, 1), AXES, ["need 12 devices, there are 8", "at most 8", "(1, -1, 1, 1)"]),
        ((-1, -1, 1, 1), AXES, ["-1 2 times", "at most one"]),
        ((0, -1, 1, 1), AXES, ["[0]", "positive"]),
        ((1, -2, 1, 2.0), AXES, ["[-2, 2.0]"]),
        ((1, -1, 1), AXES, ["3 mesh sizes", "4 names"]),
        ((1, -1), ("dp", "dp"), ["not all different"]),
        ((), (), ["at least one axis"]),
        ((0, -1, -1), ("a", "a"), ["[0]", "-1 2 times", "3 mesh sizes", "not all different", "such as (1, -1)"]),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_what_would(dims, names, parts):
    message = refusal(make_mesh, dims, names)
    assert [part for part in parts if part not in message] == []


def test_an_unknown_backend_is_refused_with_those_there_are():
    message = refusal(make_mesh, backend="abacus")
    assert "'abacus'" in message
    assert "['cpu']" in message
    assert make_mesh(backend="cpu").size == 8


def test_slices_are_separated_along_the_first_axes():
    devices = [SimpleNamespace(id=i, slice_index=i % 2, device_kind="none", platform="none") for i in range(12)]
    grid = arranged(devices, (1, 2, 6))
    slices = np.vectorize(lambda device: device.slice_index)(grid)
    assert (slices[0] == [[0] * 6, [1] * 6]).all()
    assert sorted(device.id for device in grid.flat) == list(range(12))
    two_slices_on_last = np.vectorize(lambda device: device.slice_index)(arranged(devices, (3, 1, 4)))
    assert (two_slices_on_last == [0, 0, 1, 1]).all()


# shardings


def test_a_dimension_that_does_not_divide_is_replicated_and_the_reason_told():
    mesh = mesh_of(dp=1, fsdp=2, tp=2, sp=2)
    path = "model/embed_tokens/embedding"
    placed, losses = shardings({path: (97, 8), "model/norm/scale": (7,)}, mesh, RULES, strict=False)
    assert placed[path].spec == P(None, HIDDEN)
    assert losses == {path: f"{path}: dim 0 (97) is not divisible by tp=2: replicated"}


def test_of_several_axes_the_first_that_divide_are_kept():
    mesh = mesh_of(dp=1, fsdp=2, tp=1, sp=4)
    placed, losses = shardings({"up_proj/kernel": (97, 6)}, mesh, RULES, strict=False)
    assert placed["up_proj/kernel"].spec == P("tp", "fsdp")
    assert losses["up_proj/kernel"].endswith("dim 1 (6) is not divisible by fsdp=2 x sp=4: split over fsdp=2 only")


def test_user_rules_that_do_not_fit_are_all_refused():
    mesh, shapes = mesh_of(tp=4, fsdp=2), {"a/kernel": (97, 3), "b/kernel": (8, 8), "c/kernel": (8, 7), "d": (3,)}
    message = refusal(shardings, shapes, mesh, [("kernel", P("tp", "fsdp"))], strict=True)
    assert "a/kernel: dim 0 (97) is not divisible by tp=4" in message
    assert "dim 1 (3) is not divisible by fsdp=2" in message
    assert "c/kernel: dim 1 (7)" in message
    assert "matches d (3,)" in message
    assert "replicated" not in message
    assert "b/kernel" not in message


def test_rules_that_name_axes_the_mesh_lacks_are_all_listed():
    rules = [("up", P("model")), ("down", P(("tp", "seq"), None)), ("", P("tp"))]
    message = refusal(shardings, {"up": (4,)}, mesh_of(tp=4, fsdp=2), rules, strict=True)
    assert "rule 'up' names ['model'], the mesh has ['tp', 'fsdp']" in message
    assert "rule 'down' names ['seq']" in message


def test_a_rule_with_too_many_entries_is_one_problem():
    message = refusal(shardings, {"bias": (3,)}, mesh_of(tp=4, fsdp=2), [("bias", P("tp", None))], strict=True)
    assert message.startswith("bias (3,): rule 'bias' has 2 entries, more than dimensions")


def test_arrays_arrive_on_eight_devices_unchanged():
    mesh, shapes = mesh_of(dp=1, fsdp=2, tp=2, sp=2), {"up_proj/kernel": (6, 20), "embed_tokens/embedding": (97, 6)}
    placed, _ = shardings(shapes, mesh, RULES, strict=False)
    for path, shape in shapes.items():
        values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        array = jax.device_put(values, placed[path])
        assert len(array.sharding.device_set) == 8
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, values[shard.index])
    np.testing.assert_array_equal(array, values)


# check_heads


def test_heads_that_cannot_be_split_are_refused_with_what_would_work():
    mesh = mesh_of(dp=1, fsdp=4, tp=2, sp=1)
    assert refusal(check_heads, 6, 3, mesh, PartitionAxis()) == (
        "kv_heads=3 cannot be split over tp=2; use tp in [1, 3] or PartitionAxis(kv_head_axis=None) to replicate them"
    )
    message = refusal(check_heads, 9, 3, mesh, PartitionAxis(head_axis=("fsdp", "tp")))
    assert "heads=9 cannot be split over fsdp=4 x tp=2; use fsdp x tp in [1, 3, 9]" in message
    assert "kv_heads=3" in message


def test_the_remedy_that_the_refusal_names_works_whatever_the_mesh_axes_are_called():
    mesh = make_mesh((1, 4, 2, 1), CUSTOM)
    assert "model=2" in refusal(check_heads, 6, 3, mesh, PartitionAxis())
    check_heads(6, 3, mesh, PartitionAxis(kv_head_axis=None))
    check_heads(6, 2, mesh, PartitionAxis())


# constrain


def test_constrain_splits_activations_under_jit_and_outside():
    mesh, x = mesh_of(dp=1, fsdp=2, tp=2, sp=2), jnp.arange(4 * 6 * 8.0).reshape(4, 6, 8)
    axes = (("dp", "fsdp"), "sp", "tp")
    expected = NamedSharding(mesh, P("fsdp", "sp", "tp"))
    for y in (constrain(x, mesh, axes), jax.jit(lambda x: constrain(x, mesh, axes))(x)):
        assert y.sharding.is_equivalent_to(expected, x.ndim)
        np.testing.assert_array_equal(y, x)


def test_constrain_drops_axes_that_do_not_divide_or_come_twice():
    mesh = mesh_of(dp=2, fsdp=2, tp=2)
    y = jax.jit(lambda x: constrain(x, mesh, (("dp", "fsdp"), "tp", "tp")))(jnp.ones((6, 4, 4)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("dp", "tp", None)), 3)
    y = jax.jit(lambda x: constrain(x, mesh, (("dp", "fsdp"), "tp")))(jnp.ones((1, 5)))
    assert y.sharding.is_fully_replicated


def test_constrain_leaves_arrays_alone_where_there_is_nothing_to_split():
    x = jnp.ones((2, 3))
    assert constrain(x, None, ("anything", None)) is x
    assert constrain(x, make_mesh((1, 1, 1, 1)), ("dp", None)) is x


def test_constrain_refuses_an_axis_that_the_mesh_lacks():
    assert "['model', 'seq']" in refusal(constrain, jnp.ones((2, 2)), mesh_of(tp=8), (("seq", "tp"), "model"))


# bytes_per_device


def test_bytes_per_device_says_what_is_copied_and_why():
    mesh = mesh_of(dp=2, fsdp=2, tp=2, sp=1)
    arrays = {
        "norm/scale": jax.ShapeDtypeStruct((6,), jnp.float32),
        "embed_tokens/embedding": jax.ShapeDtypeStruct((97, 6), jnp.bfloat16),
        "up_proj/kernel": jax.ShapeDtypeStruct((8, 6), jnp.int8),
    }
    axes = PartitionAxis(hidden_axis=("dp", "fsdp"))
    placed, losses = shardings({path: array.shape for path, array in arrays.items()}, mesh, RULES, strict=False)
    embedding, norm, kernel = bytes_per_device(arrays, placed, losses)
    assert (embedding.path, embedding.total_bytes, embedding.device_bytes, embedding.copies) == (
        "embed_tokens/embedding", 97 * 6 * 2, 97 * 3 * 2, 4,
    )  # fmt: skip
    assert "dim 0 (97)" in embedding.why
    assert (norm.device_bytes, norm.copies) == (24, 8)
    assert norm.why == "norm/scale: its rule does not use dp=2 x fsdp=2 x tp=2"
    assert (kernel.device_bytes, kernel.copies, kernel.why) == (12, 2, "up_proj/kernel: its rule does not use dp=2")

    small = {"up_proj/kernel": jax.ShapeDtypeStruct((8, 8), jnp.int8)}
    whole, _ = shardings({"up_proj/kernel": (8, 8)}, mesh, default_rules(axes), strict=False)
    [row] = bytes_per_device(small, whole)
    assert (row.device_bytes, row.copies, row.why) == (8, 1, "")
