"""Every argument of `from_pretrained` does what it says: each test fails if its argument is ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from cases import SIZES, Case
from jax.sharding import NamedSharding, PartitionSpec
from parity import assert_close, make_reference, random_ids, reference_logits
from safetensors.numpy import load_file, save_file

from easydel import (
    ArgumentError,
    AutoEasyDeLConfig,
    AutoEasyDeLModelForCausalLM,
    BaseNNXModule,
    CheckpointError,
    HubError,
    PartitionAxis,
    ShardingError,
    loading,
    options,
    prepare,
)
from easydel.tree import flatten

CASE = Case("llama-arguments", "llama", SIZES | {"num_hidden_layers": 2})
KERNEL = "model/layers/0/self_attn/q_proj/kernel"
IDS = random_ids(CASE)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    make_reference(CASE, path)
    return path


def load(directory: Path, **arguments: Any) -> tuple[BaseNNXModule, dict[str, Any]]:
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory, **arguments)
    return model, flatten(params)


def equations(jaxpr: Any) -> list[Any]:
    """All equations of a jaxpr, inner ones included."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += equations(inner)
    return found


def traced(model: BaseNNXModule) -> list[Any]:
    return equations(jax.make_jaxpr(model.apply)(model.params, IDS).jaxpr)


def test_model_and_params_share_their_arrays(directory: Path):
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    own = flatten(model.params)
    assert list(own) == list(flatten(params))
    assert all(own[path] is leaf for path, leaf in flatten(params).items())
    assert params["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"].shape == (48, 48)


def test_apply_works_under_jit_and_grad(directory: Path):
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(directory)
    inside = jax.jit(lambda params, ids: model.apply(params, ids).logits)(params, IDS)
    np.testing.assert_array_equal(inside, model(IDS).logits)
    gradient = jax.grad(lambda params: jnp.sum(model.apply(params, IDS).logits ** 2))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_device_holds_the_parameters(directory: Path):
    third = jax.devices()[3]
    assert {leaf.device for leaf in load(directory, device=third)[1].values()} == {third}
    assert {leaf.device for leaf in load(directory)[1].values()} == {jax.devices("cpu")[0]}


def test_dtype_is_that_of_the_computation(directory: Path):
    model, params = load(directory, dtype=jnp.bfloat16)
    assert model(IDS).logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.float32)}
    products = [equation for equation in traced(model) if equation.primitive.name == "dot_general"]
    assert {variable.aval.dtype for equation in products for variable in equation.invars} == {jnp.dtype(jnp.bfloat16)}


def test_param_dtype_is_that_of_the_storage(directory: Path):
    model, params = load(directory, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.bfloat16)}
    assert model(IDS).logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
def test_a_dtype_that_is_no_float_is_refused(directory: Path, name: str):
    with pytest.raises(ArgumentError, match=f"^{name}=.*int32.*floating"):
        load(directory, **{name: "int32"})


@pytest.mark.parametrize("dtype", ["int8", "half a float"])
def test_export_refuses_a_dtype_that_is_no_float(directory: Path, tmp_path: Path, dtype: str):
    with pytest.raises(ArgumentError, match=f"^dtype='{dtype}' is no"):
        load(directory)[0].export(tmp_path / "exported", dtype=dtype)
    assert not (tmp_path / "exported").exists()


def test_auto_dtypes_are_those_of_the_checkpoint(directory: Path, tmp_path: Path):
    load(directory)[0].export(tmp_path / "half", dtype=jnp.bfloat16)
    model, params = load(tmp_path / "half", dtype="auto", param_dtype="auto")
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.bfloat16)}
    assert model.policy.dtype == jnp.bfloat16
    assert load(directory, param_dtype="auto")[0].policy.param_dtype == jnp.float32


def test_devices_that_stay_unused_are_told(directory: Path, caplog: pytest.LogCaptureFixture):
    load(directory, auto_shard_params=True, sharding_axis_dims=(1, 2, 1, 1))
    assert "the mesh has 2 of 8 devices: the others stay unused" in caplog.text


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST])
def test_precision_reaches_every_matrix_product(directory: Path, precision: Any):
    model, _ = load(directory, precision=precision)
    products = [equation for equation in traced(model) if equation.primitive.name == "dot_general"]
    assert len(products) > 10
    assert {equation.params["precision"] for equation in products} == {(jax.lax.Precision.HIGHEST,) * 2}
    with pytest.raises(ArgumentError, match="precision='exact'"):
        load(directory, precision="exact")


def test_sharding_axis_dims_shape_the_mesh_and_minus_one_takes_the_rest(directory: Path):
    _, params = load(directory, auto_shard_params=True, sharding_axis_dims=(1, -1, 2, 1))
    assert dict(params[KERNEL].sharding.mesh.shape) == {"dp": 1, "fsdp": 4, "tp": 2, "sp": 1}
    assert params[KERNEL].addressable_shards[0].data.shape == (24, 12)


def test_sharding_axis_names_rename_the_axes(directory: Path):
    names = ("data", "full", "tensor", "sequence")
    model, params = load(directory, auto_shard_params=True, sharding_axis_dims=(2, 2, 2, 1), sharding_axis_names=names)
    assert params[KERNEL].sharding.spec == PartitionSpec("tensor", ("full", "sequence"))
    assert_close(model(IDS).logits, np.asarray(load(directory)[0](IDS).logits))


def test_partition_axis_decides_what_is_split_over_which_axis(directory: Path):
    axes = PartitionAxis(head_axis=None, kv_head_axis=None, hidden_axis="tp")
    _, params = load(directory, auto_shard_params=True, sharding_axis_dims=(1, 4, 2, 1), partition_axis=axes)
    assert params[KERNEL].addressable_shards[0].data.shape == (48, 24)
    with pytest.raises(ShardingError, match="model_axis"):
        load(directory, partition_axis=PartitionAxis(head_axis="model_axis"))


def test_shard_attention_computation_constrains_heads(directory: Path):
    def constraints(**arguments: Any) -> int:
        model, _ = load(directory, auto_shard_params=True, sharding_axis_dims=(1, 4, 2, 1), **arguments)
        found = [equation for equation in traced(model) if equation.primitive.name == "sharding_constraint"]
        return sum(equation.invars[0].aval.ndim == 4 for equation in found)

    assert constraints() == 4 * CASE.config["num_hidden_layers"]  # queries, keys, values, outputs
    assert constraints(shard_attention_computation=False) == 0


def test_input_shape_is_traced_before_weights_are_read(directory: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(prepare, "forward", lambda model, params, inputs: seen.append(inputs["input_ids"].shape))
    monkeypatch.setattr(loading, "execute", lambda *_, **__: pytest.fail("read weights") if not seen else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(directory, input_shape=(3, 7))
    assert seen == [(3, 7)]
    with pytest.raises(ArgumentError, match=r"input_shape=\(0, 7\)"):
        load(directory, input_shape=(0, 7))


def test_heads_that_do_not_divide_are_an_error_that_names_the_choices(directory: Path):
    with pytest.raises(ShardingError, match=r"kv_heads=2 cannot be split over tp=4; use tp in \[1, 2\]"):
        load(directory, auto_shard_params=True, sharding_axis_dims=(1, 2, 4, 1))


@pytest.mark.parametrize("form", ["tuples", "paths", "nested"])
def test_shard_fns_get_each_parameter_as_it_arrives(directory: Path, form: str):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    calls = []

    def spread(array: jax.Array) -> jax.Array:
        calls.append(array.sharding.device_set)
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec("x")))

    tree = {"lm_head": {"kernel": lambda array: array * 2}, "model": {"norm": {"scale": spread}}}
    functions = {
        "nested": tree,
        "tuples": {("lm_head", "kernel"): tree["lm_head"]["kernel"], ("model", "norm", "scale"): spread},
        "paths": {"lm_head/kernel": tree["lm_head"]["kernel"], "model/norm/scale": spread},
    }[form]
    plain = load(directory)[1]
    device = jax.devices()[2]
    _, params = load(directory, shard_fns=functions, device=device)
    assert calls == [{device}]
    np.testing.assert_array_equal(params["lm_head/kernel"], plain["lm_head/kernel"] * 2)
    assert params["model/norm/scale"].addressable_shards[0].data.shape == (6,)
    with pytest.raises(ArgumentError, match="model/norm/kernel"):
        load(directory, shard_fns={"model/norm/kernel": spread})


def test_auto_shard_params_wins_over_shard_fns_and_says_so(directory: Path):
    with pytest.warns(UserWarning, match="shard_fns is ignored"):
        _, params = load(directory, auto_shard_params=True, shard_fns={"lm_head/kernel": lambda array: array * 0})
    assert np.abs(params["lm_head/kernel"]).max() > 0
    assert all(isinstance(leaf.sharding, NamedSharding) for leaf in params.values())


def test_backend_gives_the_devices_of_the_mesh(directory: Path):
    _, params = load(directory, auto_shard_params=True, backend="cpu")
    assert params[KERNEL].sharding.device_set == set(jax.devices("cpu"))
    with pytest.raises(ShardingError, match="abacus"):
        load(directory, backend="abacus")


def test_partition_rules_replace_the_built_in_ones(directory: Path):
    rules = [("q_proj/kernel", PartitionSpec(None, "fsdp")), (".*", PartitionSpec())]
    _, params = load(directory, auto_shard_params=True, partition_rules=rules)
    assert params[KERNEL].addressable_shards[0].data.shape == (48, 6)
    assert params["lm_head/kernel"].is_fully_replicated
    with pytest.raises(ShardingError, match="lm_head/kernel"):
        load(directory, auto_shard_params=True, partition_rules=rules[:1])


@pytest.mark.parametrize("arguments", [{}, {"shard_fns": {}}], ids=str)
def test_partition_rules_that_do_nothing_are_refused(directory: Path, arguments: dict[str, Any]):
    with pytest.raises(ArgumentError, match="partition_rules has no effect without auto_shard_params"):
        load(directory, partition_rules=[(".*", PartitionSpec())], **arguments)


def test_a_mesh_of_several_devices_that_nothing_uses_is_refused(directory: Path):
    with pytest.raises(ArgumentError, match=r"sharding_axis_dims=\(1, 4, 2, 1\).*auto_shard_params=True or shard_fns"):
        load(directory, sharding_axis_dims=(1, 4, 2, 1))
    load(directory, sharding_axis_dims=(1, 4, 2, 1), shard_fns={})
    load(directory, sharding_axis_dims=[1, 1, 1, 1])


@pytest.mark.parametrize("name", ["sharding_axis_dims", "sharding_axis_names", "input_shape"])
@pytest.mark.parametrize("value", [8, "dp", None])
def test_what_should_be_a_tuple_is_said_to_be_none(directory: Path, name: str, value: Any):
    with pytest.raises(ArgumentError, match=f"^{name}={value!r}, expected a tuple"):
        load(directory, **{name: value})


@pytest.mark.parametrize("form", ["config_kwargs", "kwargs"])
@pytest.mark.parametrize("override", [{"rope_theta": 17.0, "rope_parameters": None}, {"rope_theta": 17.0}], ids=str)
def test_config_overrides_change_the_model(directory: Path, tmp_path: Path, form: str, override: dict[str, Any]):
    arguments = {"config_kwargs": override} if form == "config_kwargs" else override
    model, _ = load(directory, **arguments)
    changed = Case("llama-arguments", "llama", CASE.config | {"rope_theta": 17.0})
    reference = make_reference(changed, tmp_path / "reference")
    assert_close(model(IDS).logits, reference_logits(reference, IDS))
    model.export(tmp_path / "exported")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", attn_implementation="eager")
    assert_close(model(IDS).logits, reference_logits(exported, IDS))


def test_unknown_arguments_are_refused(directory: Path):
    with pytest.raises(ArgumentError, match=r"speed.*trust_remote_code.*neither a Hub option"):
        load(directory, trust_remote_code=True, speed="ludicrous")


def test_hub_options_reach_the_hub(directory: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr(options, "fetch", lambda name, **given: seen.update(given, name=name) or directory)
    given = {
        "revision": "main",
        "token": "t",
        "cache_dir": "c",
        "subfolder": "s",
        "local_files_only": True,
        "force_download": True,
    }
    load("org/name", **given)  # type: ignore[arg-type]
    assert seen == {"name": "org/name", **given}


def test_load_in_8bit_stores_kernels_and_embeddings_as_int8(directory: Path):
    model, params = load(directory, load_in_8bit=True)
    int8 = {path for path, leaf in params.items() if leaf.dtype == jnp.int8}
    assert int8 == {path for path in load(directory)[1] if path.endswith(("kernel", "embedding"))}
    assert params[f"{KERNEL}_scale"].shape == (48,)
    exact = load(directory)[0](IDS).logits
    error = jnp.linalg.norm(model(IDS).logits - exact) / jnp.linalg.norm(exact)
    assert 0 < error < 0.05


def test_int8_does_not_depend_on_the_sharding(directory: Path):
    _, whole = load(directory, load_in_8bit=True)
    _, split = load(directory, load_in_8bit=True, auto_shard_params=True, sharding_axis_dims=(1, 2, 2, 2))
    assert whole.keys() == split.keys()
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, split[path], err_msg=path)


@pytest.mark.parametrize("target", ["q_proj", "q_proj/kernel", "self_attn.q_proj.kernel"])
def test_bit_targeted_params_select_what_is_quantized(directory: Path, target: str):
    _, params = load(directory, load_in_8bit=True, bit_targeted_params=[target])
    assert {path for path, leaf in params.items() if leaf.dtype == jnp.int8} == {KERNEL, KERNEL.replace("0", "1")}


def test_bit_targeted_params_that_do_nothing_are_refused(directory: Path):
    with pytest.raises(ArgumentError, match="load_in_8bit"):
        load(directory, bit_targeted_params=["kernel"])
    with pytest.raises(ArgumentError, match=r"input_layernorm.*names here: .*q_proj"):
        load(directory, load_in_8bit=True, bit_targeted_params=["kernel", "input_layernorm"])


def test_verbose_params_print_counts_and_bytes(directory: Path, capsys: pytest.CaptureFixture[str]):
    model, params = load(directory, param_dtype=jnp.bfloat16)
    assert capsys.readouterr().out == ""
    load(directory, param_dtype=jnp.bfloat16, verbose_params=True)
    out = capsys.readouterr().out
    for number in (model.num_params(), model.num_params() * 4, model.num_params() * 2, len(params)):
        assert f"{number:,}" in out


@pytest.mark.parametrize("arguments", [{}, {"scan_layers": True}, {"load_in_8bit": True}], ids=str)
def test_from_torch_false_reads_what_save_pretrained_wrote(directory: Path, tmp_path: Path, arguments: dict[str, Any]):
    model, params = load(directory, **arguments)
    model.save_pretrained(tmp_path / "saved")
    scan = {"scan_layers": True} if "scan_layers" in arguments else {}
    _, again = load(tmp_path / "saved", from_torch=False, **scan)
    assert again.keys() == params.keys()
    for path, leaf in params.items():
        assert leaf.dtype == again[path].dtype
        np.testing.assert_array_equal(leaf, again[path], err_msg=path)


def test_from_torch_must_fit_the_directory(directory: Path):
    with pytest.raises(CheckpointError, match=r"easydel\.json: no such file.*from_torch=False is for"):
        load(directory, from_torch=False)


def test_auto_config_reads_just_the_config(directory: Path, tmp_path: Path):
    shutil.copy(directory / "config.json", tmp_path)
    assert AutoEasyDeLConfig.from_pretrained(tmp_path).hidden_size == 48
    with pytest.raises(ArgumentError, match="speed"):
        AutoEasyDeLConfig.from_pretrained(tmp_path, speed=1)


def test_missing_extra_and_misshaped_tensors_are_all_listed(directory: Path):
    with pytest.raises(CheckpointError) as caught:
        load(directory, config_kwargs={"num_hidden_layers": 1, "vocab_size": 98, "attention_bias": True})
    message = str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight [80, 48] has no place in the model" in message
    assert caught.value.file == str(directory / "model.safetensors")
    assert "model.embed_tokens.weight is [97, 48], expected [98, 48]" in message
    assert "model.layers.0.self_attn.q_proj.bias is missing" in message


def test_quantized_checkpoints_are_refused_by_name(directory: Path, tmp_path: Path):
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "eetq"}}))
    shutil.copy(directory / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="quantized by 'eetq'"):
        load(tmp_path)


def test_a_head_that_differs_from_the_token_vectors_is_not_tied_to_them(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    model, params = load(tmp_path)
    assert "differ: not tied" in caplog.text
    assert "lm_head/kernel" in params
    assert_close(model(IDS).logits, reference_logits(reference, IDS))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head/kernel" not in load(tmp_path)[1]


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_directory(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(directory)
    with pytest.raises(HubError, match="is empty, expected a Hub id"):
        AutoEasyDeLModelForCausalLM.from_pretrained(name)
