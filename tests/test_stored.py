"""Parameters that are stored by codes: numbers of a few bits, with scales and offsets of blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easydel.ops.coded
import easydel.ops.lookup
from easydel import AutoEasyDeLModelForCausalLM
from easydel.auto import choose_family
from easydel.checkpoint.write import write_safetensors
from easydel.config import HFConfig
from easydel.errors import CheckpointError
from easydel.forms import CODES, OFFSET, SCALE, Form, packed, unpacked
from easydel.lora import LoRA, add_adapters, merge_adapters
from easydel.model import BaseNNXModule
from easydel.ops.coded import Coded
from easydel.ops.ragged import ragged_dot
from easydel.policy import Policy
from easydel.quantize import rounded_blocks
from easydel.stored import forms_of, storable
from easydel.tree import flatten, unflatten
from easydel.weights.coded import CodedTensor
from easydel.weights.export import Parameters
from easydel.weights.expressions import Expression, Index, Reshape, Rows, Source, Stack, Transpose
from easydel.weights.keep import NotKept, keep, kept_as
from easydel.weights.plan import Plan
from easydel.weights.saved import MANIFEST, Manifest

NF4 = tuple(np.tanh(np.linspace(-2, 2, 16)).tolist())
CONFIG = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 96,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
FORMS = {
    "q_proj": Form(CODES["float8_e4m3fn"], (32, 16)),
    "k_proj": Form(CODES["int4"], (1, 32)),
    "v_proj": Form(CODES["uint4"], (1, 16), NF4),
    "o_proj": Form(CODES["uint2"], (8, 16), (), "zero"),
    "gate_proj": Form(CODES["float4_e2m1fn"], (1, 32)),
    "up_proj": Form(CODES["uint8"], (1, 64), (), "offset"),
    "down_proj": Form(CODES["int4"], (1, 16), (), "offset"),
    "embed_tokens": Form(CODES["int8"], (1, 32)),
    "lm_head": Form(CODES["float8_e4m3fn"], (1, 64)),
}


@dataclass
class Made:
    """A matrix made at random: its stored arrays, and the floats that plain numpy makes of them."""

    form: Form
    codes: np.ndarray
    scales: np.ndarray
    shifts: np.ndarray | None

    @classmethod
    def random(cls, form: Form, shape: tuple[int, ...], rng: np.random.Generator) -> Made:
        if "float" in form.code.name:
            codes = rng.standard_normal(shape).astype(form.code)
        else:
            low = -(1 << (form.bits - 1)) if form.code.name.startswith("int") else 0
            codes = rng.integers(low, low + (1 << form.bits), shape).astype(form.code)
        blocks = form.blocks(shape)
        largest = 1.0 if form.table or "float" in form.code.name else 1 << form.bits
        scales = (rng.uniform(0.5, 1.5, blocks) / largest / 4).astype(np.float32)
        shifts = {"zero": rng.uniform(0, 3, blocks), "offset": rng.standard_normal(blocks) / 8 - 0.1}.get(form.shift)
        return cls(form, codes, scales, None if shifts is None else shifts.astype(np.float32))

    @property
    def floats(self) -> np.ndarray:
        values = np.asarray(self.form.table, np.float32)[self.codes.astype(int)] if self.form.table else self.codes
        values, scales, shifts = values.astype(np.float32), self._wide(self.scales), self._wide(self.shifts)
        return (values - shifts) * scales if self.form.shift == "zero" else values * scales + shifts

    def _wide(self, numbers: np.ndarray | None) -> Any:
        rows, columns = self.form.block
        return 0 if numbers is None else np.repeat(np.repeat(numbers, rows, -2), columns, -1)

    def arrays(self) -> dict[str, np.ndarray]:
        shape = self.form.scales_shape(self.codes.shape)
        found = {"": packed(self.codes, self.form), SCALE: self.scales.reshape(shape)}
        return found if self.shifts is None else found | {OFFSET: self.shifts.reshape(shape)}

    def on_device(self) -> Coded:
        arrays = {name: jnp.asarray(array) for name, array in self.arrays().items()}
        return Coded(arrays[""], arrays[SCALE], arrays.get(OFFSET), self.form)


KINDS = [
    *(Form(code, block) for code, block in zip(CODES.values(), [(1, 96), (4, 24)] * 5, strict=False)),
    Form(CODES["uint4"], (1, 8), NF4),
    Form(CODES["uint4"], (1, 96), (), "zero"),
    Form(CODES["uint8"], (1, 32), (), "offset"),
    Form(CODES["int4"], (8, 4), (), "offset"),
]


@pytest.mark.parametrize("form", KINDS, ids=lambda form: f"{form.code}-{form.block}-{form.shift}")
def test_products_look_ups_and_gradients_are_those_of_the_floats(form: Form, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(easydel.ops.coded, "BLOCK_BYTES", 8 * 96 * 4)  # several blocks, the last one smaller
    rng = np.random.default_rng(0)
    made = Made.random(form, (44 if form.block[0] == 1 else 40, 96), rng)
    x, index = rng.standard_normal((2, 3, 96)).astype(np.float32), np.array([[3, 39], [0, 7]])

    look_up = partial(easydel.ops.lookup.look_up, split=None)

    @jax.jit
    def computed(x: jax.Array, matrix: Coded) -> Any:
        y, back = jax.vjp(lambda x: matrix.times(x, None, split=False), x)
        return y, back(y)[0], matrix.times(x, None, split=True), matrix.rows(index, look_up).whole(x.dtype)

    y, gradient, at_once, rows = computed(x, made.on_device())
    wanted = x @ made.floats.T
    np.testing.assert_array_equal(unpacked(packed(made.codes, form), form), made.codes)
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    np.testing.assert_allclose(at_once, wanted, atol=2e-5)
    np.testing.assert_allclose(gradient, wanted @ made.floats, atol=2e-4)
    np.testing.assert_allclose(rows, made.floats[index], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["k_proj", "q_proj", "lm_head"])
def test_grouped_products_are_those_of_the_floats(name: str):
    rng = np.random.default_rng(0)
    made = Made.random(FORMS[name], (3, 32, 64), rng)
    x, sizes = rng.standard_normal((7, 64)).astype(np.float32), jnp.array([4, 0, 2])

    @jax.jit
    def computed(x: jax.Array, matrix: Coded) -> Any:
        y, back = jax.vjp(lambda x: ragged_dot(x, matrix, sizes), x)
        return y, back(y)[0]

    y, gradient = computed(x, made.on_device())
    wanted = np.concatenate([x[:4] @ made.floats[0].T, x[4:6] @ made.floats[2].T, np.zeros((1, 32))])
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    again = np.concatenate([wanted[:4] @ made.floats[0], wanted[4:6] @ made.floats[2], np.zeros((1, 64))])
    np.testing.assert_allclose(gradient, again, atol=2e-4)


@dataclass(frozen=True, eq=False)
class Whole(CodedTensor):
    """A coded tensor in memory, whose blocks may be larger than the matrix or stand out over its end."""

    name: str
    form: Form
    made: Made
    file: Path = Path("memory")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.made.codes.shape

    @property
    def nbytes(self) -> int:
        return self.made.codes.nbytes

    def codes(self, index: Index) -> np.ndarray:
        return self.made.codes[index]

    def scales(self, index: Index) -> np.ndarray:
        return self.made.scales[index]

    def shifts(self, index: Index) -> np.ndarray:
        assert self.made.shifts is not None
        return self.made.shifts[index]


def plan_of(expression: Expression, shape: tuple[int, ...], **tensors: Form) -> Plan:
    rng = np.random.default_rng(0)
    found = {name: (16, 48) if name < "m" else (2, 16, 48) for name in tensors}
    made = {name: Whole(name, form, Made.random(form, found[name], rng)) for name, form in tensors.items()}
    return Plan({"w": expression}, {"w": shape}, made, ())


def read(plan: Plan, path: str, dtype: Any, index: Index) -> np.ndarray:
    out = np.empty([part.stop - part.start for part in index], dtype)
    for copy in plan.expressions[path].copies(index, out):
        copy.out[...] = plan.tensors[copy.name].read(copy.index)
    return out


INT4, FP8, UINT8 = Form(CODES["int4"], (1, 16)), Form(CODES["float8_e4m3fn"], (8, 16)), Form(CODES["uint8"], (1, 48))
PICKED = np.array([3, 4, 5, 9, 8, 0, 2, 4])
EXPRESSIONS: dict[str, tuple[Plan, tuple[int, int]]] = {
    "tensor": (plan_of(Source("a"), (16, 48), a=FP8), (8, 16)),
    "selected rows": (plan_of(Rows(Source("a"), PICKED, 16), (8, 48), a=INT4), (1, 16)),
    "selected rows of blocks": (plan_of(Rows(Source("a"), PICKED, 16), (8, 48), a=FP8), (1, 16)),
    "transposed": (plan_of(Transpose(Source("a")), (48, 16), a=FP8), (16, 8)),
    "transposed, several in a byte": (
        plan_of(Transpose(Source("a")), (48, 16), a=replace(INT4, block=(4, 16), shift="zero")),
        (16, 4),
    ),
    "rows of a transposed one": (plan_of(Rows(Transpose(Source("a")), PICKED, 48), (8, 16), a=FP8), (1, 8)),
    "columns in another order": (
        plan_of(Rows(Source("a"), np.r_[24:48, 0:8], 48, -1), (16, 32), a=replace(UINT8, shift="offset")),
        (1, 32),
    ),
    "experts in one matrix": (plan_of(Reshape(Source("a"), (16, 48), (4, 4, 48)), (4, 4, 48), a=INT4), (1, 16)),
    "stacked": (
        plan_of(Stack((Source("a"), Source("b"))), (2, 16, 48), a=INT4, b=replace(INT4, block=(1, 24))),
        (1, 8),
    ),
    "stacked experts, some rows": (
        plan_of(Stack((Rows(Source("x"), PICKED, 16), Rows(Source("y"), PICKED, 16))), (2, 2, 8, 48), x=FP8, y=FP8),
        (1, 16),
    ),
    "a block for all": (plan_of(Source("a"), (16, 48), a=replace(FP8, block=(16, 48))), (1, 48)),
}


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_codes_and_scales_of_any_part_are_read_through_the_parameters_own_expression(kind: str):
    plan, block = EXPRESSIONS[kind]
    shape = plan.shapes["w"]
    whole = tuple(slice(0, dim) for dim in shape)
    floats = read(plan, "w", np.float32, whole)
    stored = kept_as(plan, "w", (1,) * len(shape))
    assert stored.form.block == block
    for counts in ((1, 1), (2, 2)):
        stored = kept_as(plan, "w", (*[1] * (len(shape) - 2), *counts))
        kept = keep(plan, {"w": stored})
        dtypes = {"w": stored.form.held, "w_scale": stored.scale, "w_offset": stored.shift}
        arrays = {path: np.empty(dims, dtypes[path]) for path, dims in kept.shapes.items()}
        for path, array in arrays.items():
            *lead, rows, columns = (*array.shape, 1)[: len(shape)]
            for r in range(counts[0]):
                for c in range(counts[1] if array.ndim == len(shape) else 1):
                    height, width = rows // counts[0], columns // counts[1]
                    part = (slice(r * height, (r + 1) * height), slice(c * width, (c + 1) * width))
                    index = (*(slice(0, dim) for dim in lead), *part)[: array.ndim]
                    array[index] = read(kept, path, array.dtype, index)
        matrix = Coded(arrays["w"], arrays["w_scale"], arrays.get("w_offset"), stored.form)  # type: ignore[arg-type]
        np.testing.assert_allclose(matrix.whole(np.float32), floats, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("expression", "shape", "forms", "reason"),
    [
        (Rows(Source("a"), PICKED, 48, -1), (16, 8), {"a": INT4}, "columns are in another order"),
        (Reshape(Source("a"), (16, 48), (32, 24)), (32, 24), {"a": INT4}, r"\[16, 48\] is read as \[32, 24\]"),
        (Transpose(Source("a")), (48, 16), {"a": INT4}, "2 codes of a byte are not in one block of 16 x 1"),
        (Stack((Source("a"), Source("b"))), (2, 16, 48), {"a": INT4, "b": FP8}, "int4 and float8_e4m3fn"),
        (Source("a"), (16, 48), {"a": replace(FP8, block=(1, 4))}, "as much memory as 16-bit floats"),
    ],
)
def test_what_cannot_stay_by_codes_says_why(expression: Expression, shape: Any, forms: dict[str, Form], reason: str):
    with pytest.raises(NotKept, match=reason):
        kept_as(plan_of(expression, shape, **forms), "w", (1,) * len(shape))


@dataclass
class Checkpoint:
    """A directory of codes as `save_pretrained` writes it, the same model in floats, and that model's weights."""

    codes: Path
    floats: Path
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    rng, config = np.random.default_rng(0), HFConfig(CONFIG)
    family = choose_family(config, encoder_decoder=False)
    model = BaseNNXModule(family.record(family.configured(config))[0], config, Policy())
    stored: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    forms: dict[str, Form] = {}
    places = storable(model)
    for path, leaf in flatten(model.params).items():
        if path not in places:
            weights[path] = stored[path] = rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32)
            continue
        form = FORMS[path.split("/")[-2]]
        made = Made.random(form, leaf.shape, rng)
        stored |= {f"{path}{end}": array for end, array in made.arrays().items()}
        forms[path], weights[path] = form, made.floats
    directory = tmp_path_factory.mktemp("codes")
    for name, arrays, manifest in (("codes", stored, Manifest((), forms)), ("floats", weights, Manifest())):
        write(directory / name, arrays, manifest)
    return Checkpoint(directory / "codes", directory / "floats", weights)


def write(directory: Path, arrays: dict[str, np.ndarray], manifest: Manifest) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    manifest.write(directory)
    entries = [(path.replace("/", "."), array.shape, array.dtype, value_of(array)) for path, array in arrays.items()]
    write_safetensors(directory, entries, max_shard_bytes=1 << 30, metadata={"format": "pt"}, stem="easydel")


def value_of(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


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


def test_saving_again_and_exporting_lose_nothing(checkpoint: Checkpoint, tmp_path: Path):
    model = load(checkpoint.codes, scan_layers=True)
    model.save_pretrained(tmp_path / "again")
    first, again = (flatten(load(path).params) for path in (checkpoint.codes, tmp_path / "again"))
    assert first.keys() == again.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(again[path]).view(np.uint8), np.asarray(leaf).view(np.uint8))
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
