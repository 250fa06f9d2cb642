"""Small writers of quantized matrices, number by number from the layouts, and the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Arrays = dict[str, np.ndarray]
LUT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass
class Packed:
    """The tensors of one matrix "m" in a file, the config's entry, and the weights as floats."""

    tensors: Arrays
    settings: dict[str, Any]
    weight: np.ndarray


def stream(numbers: np.ndarray, bits: int, dtype: Any) -> np.ndarray:
    """Returns numbers in the last dimension as one stream of bits, the first number in the lowest ones."""
    places = numbers.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8) & 1
    packed = np.packbits(places.reshape(*numbers.shape[:-1], -1), axis=-1, bitorder="little")
    lacking = -packed.shape[-1] % np.dtype(dtype).itemsize
    return np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, lacking)]).view(dtype)


def gptq(rng: np.random.Generator, bits: int, *, v2: bool = False, sym: bool = False, apart: bool = False) -> Packed:
    rows, columns, group = 32, 96, 32
    codes = rng.integers(0, 1 << bits, (rows, columns))
    zeros = np.full((rows, 3), 1 << bits - 1) if sym else rng.integers(0, 1 << bits, (rows, 3))
    zeros[0, 0] = 0 if not sym else zeros[0, 0]  # less one, it borrows from the next number
    scales = rng.uniform(0.01, 0.1, (rows, 3)).astype(np.float16)
    groups = rng.permutation(columns) // group if apart else np.arange(columns) // group
    if v2:
        stored = stream(zeros.T, bits, np.int32)
    elif 8 % bits:
        stored = stream((zeros.T - 1) % (1 << bits), bits, np.int32)
    else:
        one = stream(np.ones_like(zeros.T), bits, np.uint32)
        stored = (stream(zeros.T, bits, np.uint32) - one).view(np.int32)
    tensors = {
        "m.qweight": np.ascontiguousarray(stream(codes, bits, np.int32).T),
        "m.qzeros": stored,
        "m.scales": np.ascontiguousarray(scales.T),
        "m.g_idx": groups.astype(np.int32),
    }
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": apart, "sym": sym}
    settings["checkpoint_format"] = "gptq_v2" if v2 else "gptq"
    return Packed(tensors, settings, (codes - zeros[:, groups]) * scales.astype(np.float32)[:, groups])


def auto_round(rng: np.random.Generator, packing: str) -> Packed:
    """Writes what GPTQ has without g_idx; the module has 8 bits by an entry of its own."""
    made = gptq(rng, 8, v2=packing == "auto_round")
    del made.tensors["m.g_idx"]
    own = {"m": {"bits": 8, "sym": False}, "other.*": {"bits": 2}}
    made.settings = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 32, "sym": True}
    made.settings["extra_config"] = own
    return made


def awq(rng: np.random.Generator, version: str) -> Packed:
    rows, columns, group = 24, 192, 64
    codes, zeros = rng.integers(0, 16, (rows, columns)), rng.integers(0, 16, (rows, 3))
    scales = rng.uniform(0.01, 0.1, (rows, 3)).astype(np.float16)
    padding = ((0, 0), (0, 16 - 3))  # two words of zeros a row, in groups of 64
    if version == "gemm":
        order = np.arange(rows).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()
        tensors = {"qweight": stream(codes.T[:, order], 4, np.int32), "qzeros": stream(zeros.T[:, order], 4, np.int32)}
        tensors["scales"] = np.ascontiguousarray(scales.T)
    elif version == "gemv":
        padded = np.pad(zeros, padding)
        tensors = {"qweight": stream(codes, 4, np.int32), "qzeros": stream(padded, 4, np.int32)}
        tensors["scales"] = np.pad(scales, padding)
    else:
        tensors = {"qweight": _gemv_fast(codes), "scales": np.ascontiguousarray(np.pad(scales, padding).T)}
        offsets = (-scales.astype(np.float32) * zeros).astype(np.float16)
        tensors["qzeros"] = np.ascontiguousarray(np.pad(offsets, padding).T)
    each = np.arange(columns) // group
    wide = scales.astype(np.float32)[:, each]
    if version == "gemv_fast":
        weight = codes * wide + offsets.astype(np.float32)[:, each]
    else:
        weight = (codes - zeros[:, each]) * wide
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version}
    return Packed({f"m.{leaf}": array for leaf, array in tensors.items()}, settings, weight)


def _gemv_fast(codes: np.ndarray) -> np.ndarray:
    """Returns tiles of 4 rows and 64 columns, whose numbers fill 64 integers of 16 bits, row after row."""
    rows, columns = codes.shape
    within = np.array([0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27])
    order = np.concatenate([within, within + 4])  # of 32 columns; checked with AutoAWQ's pack_intweight
    tiles = codes.reshape(rows // 4, 4, columns // 64, 2, 32)[..., order].transpose(0, 2, 1, 3, 4)
    return stream(tiles.reshape(rows // 4, -1), 4, np.int16)


def bitsandbytes(rng: np.random.Generator, kind: str, shape: tuple[int, ...], *, nested: bool = False) -> Packed:
    size, count = 64, int(np.prod(shape))
    codes, blocks = rng.integers(0, 16, count), -(-count // size)
    table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    state = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": list(shape)}
    tensors = {"quant_map": table, "absmax": rng.uniform(0.1, 1, blocks).astype(np.float32)}
    scales = tensors["absmax"]
    if nested:
        outer, offset = 32, 0.25
        tensors["absmax"] = rng.integers(0, 256, blocks).astype(np.uint8)
        tensors["nested_quant_map"] = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        tensors["nested_absmax"] = rng.uniform(0.1, 0.2, -(-blocks // outer)).astype(np.float32)
        state |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": offset}
        factors = tensors["nested_absmax"][np.arange(blocks) // outer]
        scales = tensors["nested_quant_map"][tensors["absmax"]] * factors + np.float32(offset)
    tensors[f"quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    padded = np.pad(codes, (0, count % 2)).reshape(-1, 2)
    packed = (padded[:, :1] << 4 | padded[:, 1:]).astype(np.uint8)
    # bnb_4bit_quant_storage may call the bytes something else
    tensors = {"m.weight": packed.reshape(-1).view(np.float16) if kind == "fp4" else packed} | {
        f"m.weight.{leaf}": array for leaf, array in tensors.items()
    }
    weight = table[codes] * scales[np.arange(count) // size]
    return Packed(tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}, weight.reshape(shape))


def mlx_affine(rng: np.random.Generator, bits: int) -> Packed:
    """Writes stacked experts; the config has other bits, and this module an entry of its own."""
    codes = rng.integers(0, 1 << bits, (3, 5, 96))
    scales, biases = (rng.normal(size=(3, 5, 3)).astype(ml_dtypes.bfloat16) for _ in range(2))
    each = np.arange(96) // 32
    wide = [array.astype(np.float32)[..., each] for array in (scales, biases)]
    tensors = {"m.weight": stream(codes, bits, np.uint32), "m.scales": scales, "m.biases": biases}
    own = {"m": {"group_size": None, "bits": bits}, "other": False}
    settings = {"quant_method": "mlx", "group_size": 64, "bits": 4, "mode": "affine", **own}
    return Packed(tensors, settings, codes * wide[0] + wide[1])


def mlx_floats(rng: np.random.Generator, mode: str) -> Packed:
    bits, group = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}[mode]
    codes = rng.integers(0, 1 << bits, (5, 96)).astype(np.uint8)
    codes[codes == 127] = codes[codes == 255] = 0  # NaN of float8
    scales = rng.integers(100, 120, (5, 96 // group)).astype(np.uint8)
    values = LUT4[codes] if bits == 4 else codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    kind = ml_dtypes.float8_e4m3fn if mode == "nvfp4" else ml_dtypes.float8_e8m0fnu
    wide = scales.view(kind).astype(np.float32)[:, np.arange(96) // group]
    settings = {"quant_method": "mlx", "group_size": group, "bits": bits, "mode": mode}
    return Packed({"m.weight": stream(codes, bits, np.uint32), "m.scales": scales}, settings, values * wide)


def metal(rng: np.random.Generator) -> Packed:
    made = mlx_affine(rng, 4)
    made.tensors["m.qbiases"] = made.tensors.pop("m.biases")
    return Packed(made.tensors, {"quant_method": "metal", "bits": 4, "group_size": 32}, made.weight)


def hqq(rng: np.random.Generator, bits: int, axis: int, shape: tuple[int, int] = (16, 96), group: int = 32) -> Packed:
    count = shape[0] * shape[1]
    grouped = (count // group, group) if axis else (group, count // group)
    codes = rng.integers(0, 1 << bits, grouped)
    scale = rng.uniform(0.01, 0.1, (grouped[0], 1) if axis else (1, grouped[1])).astype(np.float32)
    zero = rng.uniform(0, (1 << bits) - 1, scale.shape).astype(np.float32)
    fields = {1: 8, 2: 4, 3: 10, 4: 2, 8: 1}[bits]
    parts = np.pad(codes, ((0, -grouped[0] % fields), (0, 0))).reshape(fields, -1, grouped[1])
    packed = sum(part << bits * (fields - 1 - place) for place, part in enumerate(parts))
    tensors = {
        "W_q": np.asarray(packed).astype(np.int32 if bits == 3 else np.uint8),
        "scale": scale,
        "zero": zero,
        "nbits": np.array(bits, np.int32),
        "axis": np.array(axis, np.int32),
        "shape": np.array(shape, np.int64),
        "group_size": np.array(group, np.int32),
        "packing": np.frombuffer(b"4bit_u8", np.uint8),
        "view_as_float": np.array(0, np.uint8),
    }
    weight = ((codes - zero) * scale).astype(np.float32).reshape(shape)
    return Packed({f"m.{leaf}": array for leaf, array in tensors.items()}, {"quant_method": "hqq"}, weight)


def bitnet(rng: np.random.Generator, linear_class: str) -> Packed:
    codes = rng.integers(0, 3, (8, 24))
    packed = sum(codes[2 * part : 2 * part + 2] << 2 * part for part in range(4))
    scale = np.array([0.375], ml_dtypes.bfloat16)
    factor = np.float32(0.375) if linear_class == "autobitlinear" else 1 / np.float32(0.375)
    settings = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline"}
    tensors = {"m.weight": np.asarray(packed).astype(np.uint8), "m.weight_scale": scale}
    return Packed(tensors, settings, (codes - 1) * factor)


WRITERS: dict[str, Callable[[np.random.Generator], Packed]] = {
    **{f"gptq-{bits}": lambda rng, bits=bits: gptq(rng, bits) for bits in (2, 3, 4, 8)},
    "gptq-v2": lambda rng: gptq(rng, 4, v2=True),
    "gptq-sym": lambda rng: gptq(rng, 3, sym=True),
    "gptq-apart": lambda rng: gptq(rng, 4, apart=True),
    "auto-round": lambda rng: auto_round(rng, "auto_round"),
    "auto-round-gptq": lambda rng: auto_round(rng, "auto_round:auto_gptq"),
    **{f"awq-{version}": lambda rng, version=version: awq(rng, version) for version in ("gemm", "gemv", "gemv_fast")},
    "bnb-nf4": lambda rng: bitsandbytes(rng, "nf4", (5, 128)),
    "bnb-fp4": lambda rng: bitsandbytes(rng, "fp4", (3, 4, 32)),
    "bnb-odd": lambda rng: bitsandbytes(rng, "nf4", (41, 63), nested=True),
    "bnb-experts": lambda rng: bitsandbytes(rng, "nf4", (3, 7, 96), nested=True),
    **{f"mlx-{bits}": lambda rng, bits=bits: mlx_affine(rng, bits) for bits in (2, 3, 4, 5, 6, 8)},
    **{f"mlx-{mode}": lambda rng, mode=mode: mlx_floats(rng, mode) for mode in ("mxfp4", "nvfp4", "mxfp8")},
    "metal": metal,
    **{f"hqq-{bits}": lambda rng, bits=bits: hqq(rng, bits, 1) for bits in (1, 2, 3, 4, 8)},
    "hqq-crossing": lambda rng: hqq(rng, 4, 1, shape=(16, 40)),
    "hqq-columns": lambda rng: hqq(rng, 3, 0),
    "hqq-apart-3": lambda rng: hqq(rng, 3, 0, shape=(24, 40), group=12),
    "hqq-apart-4": lambda rng: hqq(rng, 4, 0, shape=(16, 40), group=8),
    **{f"bitnet-{kind}": lambda rng, kind=kind: bitnet(rng, kind) for kind in ("bitlinear", "autobitlinear")},
}
