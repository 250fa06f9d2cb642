"""Matrices stored by codes, made at random, and checkpoints of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from easydel.auto import choose_family
from easydel.checkpoint.write import write_safetensors
from easydel.config import HFConfig
from easydel.forms import BESIDE, CODES, FACTOR, GAIN, OFFSET, ORDER, SCALE, Form, packed
from easydel.model import BaseNNXModule
from easydel.ops.coded import Coded
from easydel.policy import Policy
from easydel.stored import storable
from easydel.tree import flatten
from easydel.weights.saved import Manifest

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
    "q_proj": Form(CODES["float8_e4m3fn"], (32, 16), extra=(GAIN,)),
    "k_proj": Form(CODES["int4"], (1, 32), extra=(FACTOR, ORDER, GAIN)),
    "v_proj": Form(CODES["uint4"], (1, 16), NF4),
    "o_proj": Form(CODES["uint2"], (8, 16), (), "zero", (ORDER,)),
    "gate_proj": Form(CODES["float4_e2m1fn"], (8, 32), extra=(FACTOR, ORDER), step=6),
    "up_proj": Form(CODES["uint8"], (1, 64), (), "offset"),
    "down_proj": Form(CODES["int4"], (1, 8), (), "offset", (GAIN,)),
    "embed_tokens": Form(CODES["int8"], (1, 32), extra=(ORDER, GAIN)),
    "lm_head": Form(CODES["float8_e4m3fn"], (1, 64), extra=(FACTOR,)),
}


@dataclass
class Made:
    """A matrix made at random: its stored arrays, and the floats that plain numpy makes of them."""

    form: Form
    codes: np.ndarray
    scales: np.ndarray
    shifts: np.ndarray | None
    more: dict[str, np.ndarray]

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
        *lead, _, columns = shape
        more = {
            FACTOR: rng.uniform(0.5, 1, lead).astype(np.float32),
            ORDER: rng.permuted(np.broadcast_to(np.arange(columns, dtype=np.int32), (*lead, columns)), axis=-1),
            GAIN: rng.uniform(0.5, 1, (*lead, columns)).astype(np.float32),
        }
        kept = {end: more[end] for end in form.extra}
        return cls(form, codes, scales, None if shifts is None else shifts.astype(np.float32), kept)

    @property
    def floats(self) -> np.ndarray:
        values = np.asarray(self.form.table, np.float32)[self.codes.astype(int)] if self.form.table else self.codes
        values, scales, shifts = values.astype(np.float32), self._wide(self.scales), self._wide(self.shifts)
        scales = scales * self.more.get(FACTOR, np.float32(1))[..., None, None]
        floats = (values - shifts) * scales if self.form.shift == "zero" else values * scales + shifts
        if ORDER in self.more:
            ordered, floats = floats, np.empty_like(floats)
            np.put_along_axis(floats, np.broadcast_to(self.more[ORDER][..., None, :], floats.shape), ordered, axis=-1)
        return floats * self.more[GAIN][..., None, :] if GAIN in self.more else floats

    def _wide(self, numbers: np.ndarray | None) -> Any:
        if numbers is None:
            return 0
        (rows, columns), (*lead, high, across), step = self.form.block, numbers.shape, self.form.step
        apart = numbers.reshape(*lead, high // step, 1, step, across)
        return np.repeat(np.repeat(apart, rows, -3).reshape(*lead, high * rows, across), columns, -1)

    def arrays(self) -> dict[str, np.ndarray]:
        shape = self.form.scales_shape(self.codes.shape)
        found = {"": packed(self.codes, self.form), SCALE: self.scales.reshape(shape)}
        return (found if self.shifts is None else found | {OFFSET: self.shifts.reshape(shape)}) | self.more

    def on_device(self) -> Coded:
        arrays = {name: jnp.asarray(array) for name, array in self.arrays().items()}
        return Coded(arrays[""], *(arrays.get(end) for end in BESIDE), form=self.form)  # type: ignore[arg-type]


@dataclass
class Checkpoint:
    """A directory of codes as `save_pretrained` writes it, the same model in floats, and that model's weights."""

    codes: Path
    floats: Path
    weights: dict[str, np.ndarray]


def write_checkpoint(directory: Path) -> Checkpoint:
    """Writes a model of every form in `FORMS`."""
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
