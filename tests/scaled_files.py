"""Small writers of matrices with scales, number by number from the layouts, and the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

ROWS, COLUMNS = 40, 96
FP8 = ml_dtypes.float8_e4m3fn
LUT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass
class Scaled:
    """Tensors of a file, the config's entry, and the weights as floats, by name."""

    tensors: dict[str, np.ndarray]
    settings: dict[str, Any]
    weights: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)


def spread(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns the number of its block for each row and column."""
    wide = np.repeat(np.repeat(blocks.astype(np.float32), rows, axis=-2), columns, axis=-1)
    return wide[..., :ROWS, :COLUMNS]


def bits_of(numbers: np.ndarray, bits: int, word: Any) -> np.ndarray:
    """Returns numbers in the last dimension as one stream of bits, the first number in the lowest ones."""
    places = numbers.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8) & 1
    packed = np.packbits(places.reshape(*numbers.shape[:-1], -1), axis=-1, bitorder="little")
    lacking = -packed.shape[-1] % np.dtype(word).itemsize
    return np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, lacking)]).view(word)


def fp8_codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 100, shape).astype(FP8)


def scales_of(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.uniform(0.001, 0.1, shape).astype(dtype)


def fp8(
    rng: np.random.Generator, shape: tuple[int, ...], name: str, block: tuple[int, int], *, dtype: Any = np.float32
) -> Scaled:
    codes, scales = fp8_codes(rng, ROWS, COLUMNS), scales_of(rng, *shape, dtype=dtype)
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "static"}
    tensors = {"m.weight": codes, f"m.{name}": scales, "m.input_scale": np.ones((), np.float32)}
    wide = spread(scales.reshape((*shape, 1, 1)[:2]), *block)
    return Scaled(tensors, settings, {"m.weight": codes.astype(np.float32) * wide})


def mxfp8(rng: np.random.Generator, dtype: Any, name: str) -> Scaled:
    codes, exponents = fp8_codes(rng, ROWS, COLUMNS), rng.integers(110, 130, (ROWS, 3), np.uint8)
    wide = spread(2.0 ** (exponents.astype(np.float32) - 127), 1, 32)
    tensors = {"m.weight": codes, f"m.{name}": exponents.view(dtype)}
    settings = {"quant_method": "mxfp8", "weight_block_size": [1, 32]}
    return Scaled(tensors, settings, {"m.weight": codes.astype(np.float32) * wide})


def fp4_numbers(rng: np.random.Generator, *leading: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns bytes with two columns each, and the values."""
    codes = rng.integers(0, 16, (*leading, ROWS, COLUMNS), np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, LUT4[codes]


def deepseek_v4(rng: np.random.Generator) -> Scaled:
    """Writes an expert of 4 bits and a matrix of 8 bits in one file, with exponents for both."""
    packed, values = fp4_numbers(rng)
    exponents = rng.integers(110, 130, (ROWS, 3), np.uint8)
    dense = mxfp8(rng, ml_dtypes.float8_e8m0fnu, "scale")
    blocks = rng.integers(110, 130, (2, 3), np.uint8)
    dense.tensors["m.scale"] = blocks.view(ml_dtypes.float8_e8m0fnu)
    weight = dense.tensors["m.weight"].astype(np.float32) * spread(2.0 ** (blocks.astype(np.float32) - 127), 32, 32)
    tensors = {"e.weight": packed.view(np.int8), "e.scale": exponents.view(ml_dtypes.float8_e8m0fnu), **dense.tensors}
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "expert_dtype": "fp4", "scale_fmt": "ue8m0"}
    expert = values * spread(2.0 ** (exponents.astype(np.float32) - 127), 1, 32)
    return Scaled(tensors, settings, {"e.weight": expert, "m.weight": weight})


def fp8_experts(rng: np.random.Generator) -> Scaled:
    """Writes stacked experts, as transformers saves them."""
    codes, scales = fp8_codes(rng, 3, ROWS, COLUMNS), scales_of(rng, 3, 2, 3)
    tensors = {"experts.down_proj": codes, "experts.down_proj_scale_inv": scales}
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    return Scaled(tensors, settings, {"experts.down_proj": codes.astype(np.float32) * spread(scales, 32, 32)})


def fbgemm_experts(rng: np.random.Generator) -> Scaled:
    """Writes Llama 4's experts, [expert, in, out], with a scale for each output, which has two shapes."""
    up, down = fp8_codes(rng, 3, 24, ROWS), fp8_codes(rng, 3, 16, ROWS)
    scales = scales_of(rng, 3, ROWS)
    tensors = {"e.gate_up_proj": up, "e.gate_up_proj_scale": scales[:, None], "e.down_proj": down}
    tensors["e.down_proj_scale"] = scales[:, :, None]
    weights = {"e.gate_up_proj": up * scales[:, None], "e.down_proj": down * scales[:, None]}
    return Scaled(tensors, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, weights)


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel", **weights}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group}}


def ct_plain(
    rng: np.random.Generator, dtype: Any, shape: tuple[int, ...], block: tuple[int, int], **scheme: Any
) -> Scaled:
    codes = rng.normal(0, 50, (ROWS, COLUMNS)).round().clip(-128, 127).astype(dtype)
    scales, zeros = scales_of(rng, *shape, dtype=ml_dtypes.bfloat16), np.zeros(shape)
    tensors = {"m.weight": codes, "m.weight_scale": scales, "m.k_scale": np.ones((), np.float32)}
    if dtype is np.int8:
        zeros = rng.integers(-9, 9, shape)
        tensors["m.weight_zero_point"] = zeros.astype(np.int8)
    scales, zeros = (array.reshape((*shape, 1)[:2]) for array in (scales, zeros))
    values = codes.astype(np.float32) - spread(zeros, *block)
    return Scaled(tensors, compressed("naive-quantized", **scheme), {"m.weight": values * spread(scales, *block)})


def ct_packed(
    rng: np.random.Generator, bits: int, *, zeros: bool = False, apart: bool = False, fields: bool = False
) -> Scaled:
    """Writes integers of some bits in groups of 32; `fields`: as older versions did, none of them in two words."""
    codes, half = rng.integers(0, 1 << bits, (ROWS, COLUMNS)), 1 << bits - 1
    scales, points = scales_of(rng, ROWS, 3, dtype=np.float16), np.full((ROWS, 3), half)
    tensors: dict[str, np.ndarray] = {"m.weight_scale": scales, "m.weight_shape": np.array([ROWS, COLUMNS])}
    if zeros:
        points = rng.integers(0, 1 << bits, (ROWS, 3))
        tensors["m.weight_zero_point"] = np.ascontiguousarray(bits_of(points.T, bits, np.int32).T)
    groups = np.arange(COLUMNS) // 32
    if apart:
        groups = rng.permutation(groups)
        tensors["m.weight_g_idx"] = groups.astype(np.int32)
    if fields:
        room = 32 // bits
        padded = np.pad(codes, ((0, 0), (0, -COLUMNS % room))).reshape(ROWS, -1, room)
        words = (padded << np.arange(room) * bits).sum(-1).astype(np.uint32).view(np.int32)
    else:
        words = bits_of(codes, bits, np.int32)
    weight = (codes - points[:, groups]) * scales.astype(np.float32)[:, groups]
    settings = compressed("pack-quantized", num_bits=bits, strategy="group", group_size=32)
    return Scaled({"m.weight_packed": words, **tensors}, settings, {"m.weight": weight})


def ct_mixed(rng: np.random.Generator) -> Scaled:
    """Writes one module of 4 bits, one of 8, and one of fp8."""
    four, eight, fp8_one = ct_packed(rng, 4, zeros=True), ct_packed(rng, 8), ct_plain(rng, FP8, (ROWS, 1), (1, COLUMNS))
    made = Scaled({}, {}, {})
    for stem, part in {"a": four, "b": eight, "c": fp8_one}.items():
        made.tensors |= {name.replace("m.", f"{stem}.", 1): array for name, array in part.tensors.items()}
        made.weights[f"{stem}.weight"] = part.weights["m.weight"]
    groups = {
        str(place): {**part.settings["config_groups"]["group_0"], "format": part.settings["format"]}
        for place, part in enumerate((four, eight, fp8_one))
    }
    made.settings = {**four.settings, "format": "mixed-precision", "config_groups": groups}
    return made


def nvfp4(rng: np.random.Generator, maker: str) -> Scaled:
    """Writes NVFP4: compressed-tensors' global scale is a divisor, ModelOpt's a factor."""
    packed, values = fp4_numbers(rng)
    scales, total = rng.uniform(1, 400, (ROWS, 6)).astype(FP8), np.float32(0.0003)
    weight = {"m.weight": values * spread(scales, 1, 16) * total}
    if maker == "modelopt":
        tensors = {"m.weight": packed, "m.weight_scale_2": np.array(total), "m.v_proj.v_scale": np.array(total)}
        settings: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    else:
        tensors = {"m.weight_packed": packed, "m.weight_global_scale": np.array([1 / total], np.float32)}
        settings = compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)
    return Scaled({**tensors, "m.weight_scale": scales}, settings, weight)


def ct_mx(rng: np.random.Generator, bits: int) -> Scaled:
    """Writes compressed-tensors' MXFP6 (four numbers in three bytes) or MXFP8."""
    exponents = rng.integers(110, 130, (ROWS, 3), np.uint8)
    codes = rng.integers(0, 1 << bits, (ROWS, COLUMNS), np.uint8) if bits < 8 else fp8_codes(rng, ROWS, COLUMNS)
    values = (codes.view(ml_dtypes.float6_e2m3fn) if bits < 8 else codes).astype(np.float32)
    stored = {"m.weight_packed": bits_of(codes, bits, np.uint8)} if bits < 8 else {"m.weight": codes}
    settings = compressed(f"mxfp{bits}", num_bits=bits, type="float", strategy="group", group_size=32)
    weight = values * spread(2.0 ** (exponents.astype(np.float32) - 127), 1, 32)
    return Scaled({**stored, "m.weight_scale": exponents}, settings, {"m.weight": weight})


def ct_alone(rng: np.random.Generator) -> Scaled:
    """Writes 4 bits with one scale and zero point for all, which are not packed."""
    made = ct_packed(rng, 4)
    scale, zero = np.array([0.01], np.float32), np.array([3], np.int8)
    stored = made.tensors["m.weight_packed"].view(np.uint8)
    codes = np.stack([stored & 15, stored >> 4], axis=-1).reshape(ROWS, COLUMNS).astype(np.float32) - 8
    made.tensors |= {"m.weight_scale": scale, "m.weight_zero_point": zero}
    made.settings = compressed("pack-quantized", num_bits=4, strategy="tensor", symmetric=False)
    return Scaled(made.tensors, made.settings, {"m.weight": (codes - 3) * scale})


def mxfp4(rng: np.random.Generator, maker: str) -> Scaled:
    packed, values = fp4_numbers(rng)
    exponents = rng.integers(110, 130, (ROWS, 3), np.uint8)
    weight = {"m.weight": values * spread(2.0 ** (exponents.astype(np.float32) - 127), 1, 32)}
    name = "m.weight_packed" if maker == "compressed-tensors" else "m.weight"
    settings = {**compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32), "quant_method": maker}
    return Scaled({name: packed, "m.weight_scale": exponents}, settings, weight)


def gpt_oss(rng: np.random.Generator) -> Scaled:
    packed, values = fp4_numbers(rng, 2)
    exponents = rng.integers(110, 130, (2, ROWS, 3), np.uint8)
    weight = values * spread(2.0 ** (exponents.astype(np.float32) - 127), 1, 32)
    tensors = {"e.down_proj_blocks": packed.reshape(2, ROWS, 3, 16), "e.down_proj_scales": exponents}
    return Scaled(tensors, {"quant_method": "mxfp4"}, {"e.down_proj": weight.swapaxes(1, 2)})


def modelopt_fp8(rng: np.random.Generator, shape: tuple[int, ...], block: tuple[int, int]) -> Scaled:
    made = fp8(rng, (), "weight_scale", (ROWS, COLUMNS))
    scales = scales_of(rng, *shape)
    wide = spread(scales.reshape((-1, 1)), *block)
    made.tensors["m.weight_scale"] = scales
    made.weights["m.weight"] = made.tensors["m.weight"].astype(np.float32) * wide
    made.settings = {"quant_method": "modelopt", "quant_algo": "FP8"}
    return made


def modelopt_awq(rng: np.random.Generator) -> Scaled:
    codes = rng.integers(-8, 8, (ROWS, COLUMNS))
    scales, gain = scales_of(rng, ROWS, 3), rng.uniform(0.5, 2, COLUMNS).astype(ml_dtypes.bfloat16)
    packed = (codes[0::2] & 15 | (codes[1::2] & 15) << 4).astype(np.uint8)
    tensors = {"m.weight": packed, "m.weight_scale": scales, "m.pre_quant_scale": gain}
    weight = codes * spread(scales, 1, 32) * gain.astype(np.float32)
    settings = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 32}
    return Scaled(tensors, settings, {"m.weight": weight})


def torchao(rng: np.random.Generator) -> Scaled:
    codes, scales = rng.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8), scales_of(rng, ROWS, 3)
    zeros = rng.integers(-5, 5, (ROWS, 3)).astype(np.int8)
    tensors = {"m._weight_qdata": codes, "m._weight_scale": scales, "m._weight_zero_point": zeros}
    told = {"block_size": [1, 32], "target_dtype": {"_type": "torch.dtype", "_data": "int4"}}
    kind = {"_type": "IntxUnpackedToInt8Tensor", "_data": told}
    weight = (codes - spread(zeros, 1, 32)) * spread(scales, 1, 32)
    return Scaled(tensors, {"quant_method": "torchao"}, {"m.weight": weight}, {"m.weight": json.dumps(kind)})


def by_rows(rng: np.random.Generator, maker: str, dtype: Any, names: Mapping[str, str]) -> Scaled:
    """Writes int8 or fp8 with a scale per row, as quanto, bitsandbytes and Quark name them."""
    codes = rng.normal(0, 50, (ROWS, COLUMNS)).round().clip(-128, 127).astype(dtype)
    scales = scales_of(rng, ROWS) if maker == "bitsandbytes" else scales_of(rng, ROWS, 1)
    tensors = {names["codes"]: codes, names["scales"]: scales}
    if maker == "bitsandbytes":
        tensors["m.weight_format"] = np.zeros((), np.uint8)
    wide = scales.reshape(-1, 1) / np.float32(127 if maker == "bitsandbytes" else 1)
    return Scaled(tensors, {"quant_method": maker}, {"m.weight": codes.astype(np.float32) * wide})


def ranged(rng: np.random.Generator) -> Scaled:
    """Writes integers of 2, 4 and 8 bits, one of them an embedding."""
    made = Scaled({}, {"quant_method": "gemma", "num_bits": 4}, {})
    made.settings["module_quant_configs"] = {r"^b$": {"num_bits": 2}, r"layers\.\d+\.c": {"num_bits": 8}}
    for stem, bits in (("a", 4), ("b", 2), ("layers.0.c", 8), ("embed", 4)):
        codes, scales = rng.integers(0, 1 << bits, (ROWS, COLUMNS)), scales_of(rng, ROWS, 1)
        signed = codes - (1 << bits - 1)
        stored = signed.astype(np.int8) if bits == 8 else bits_of(codes, bits, np.uint8)
        names = ("embedding_quantized", "embedding_scale") if stem == "embed" else ("weight", "weight_scale")
        made.tensors |= {f"{stem}.{names[0]}": stored, f"{stem}.{names[1]}": scales}
        made.tensors[f"{stem}.input_activation_scale"] = np.ones((), np.float32)
        made.weights[f"{stem}.weight"] = signed * scales
    return made


ALL = (ROWS, COLUMNS)
QUANTO = {"codes": "m.weight._data", "scales": "m.weight._scale"}
PLAIN = {"codes": "m.weight", "scales": "m.weight_scale"}
WRITERS: dict[str, Callable[[np.random.Generator], Scaled]] = {
    "fp8-blocks": partial(fp8, shape=(2, 3), name="weight_scale_inv", block=(32, 32)),
    "fp8-blocks-bfloat16": partial(fp8, shape=(2, 3), name="qscale_weight", block=(32, 32), dtype=ml_dtypes.bfloat16),
    "fp8-tensor": partial(fp8, shape=(), name="weight_scale_inv", block=ALL),
    "fp8-tensor-of-one": partial(fp8, shape=(1,), name="weight_scale", block=ALL),
    "fp8-rows": partial(fp8, shape=(ROWS, 1), name="weight_scale", block=(1, COLUMNS)),
    "fp8-experts": fp8_experts,
    "fp8-deepseek-v4": deepseek_v4,
    "mxfp8": partial(mxfp8, dtype=np.uint8, name="weight_scale_inv"),
    "mxfp8-e8m0": partial(mxfp8, dtype=ml_dtypes.float8_e8m0fnu, name="scale"),
    "fbgemm-experts": fbgemm_experts,
    "ct-int8-rows": partial(ct_plain, dtype=np.int8, shape=(ROWS, 1), block=(1, COLUMNS)),
    "ct-int8-tensor": partial(ct_plain, dtype=np.int8, shape=(1,), block=ALL, strategy="tensor"),
    "ct-int8-groups": partial(ct_plain, dtype=np.int8, shape=(ROWS, 3), block=(1, 32), strategy="group", group_size=32),
    "ct-fp8-rows": partial(ct_plain, dtype=FP8, shape=(ROWS, 1), block=(1, COLUMNS), type="float"),
    "ct-fp8-blocks": partial(
        ct_plain, dtype=FP8, shape=(2, 3), block=(32, 32), type="float", strategy="block", block_structure=[32, 32]
    ),
    **{f"ct-int{bits}": partial(ct_packed, bits=bits, zeros=bits % 2 == 0) for bits in range(1, 9)},
    "ct-int4-order": partial(ct_packed, bits=4, zeros=True, apart=True),
    "ct-int3-fields": partial(ct_packed, bits=3, fields=True),
    "ct-int4-tensor": ct_alone,
    "ct-mxfp6": partial(ct_mx, bits=6),
    "ct-mxfp8": partial(ct_mx, bits=8),
    "ct-mixed": ct_mixed,
    "ct-nvfp4": partial(nvfp4, maker="compressed-tensors"),
    "ct-mxfp4": partial(mxfp4, maker="compressed-tensors"),
    "modelopt-nvfp4": partial(nvfp4, maker="modelopt"),
    "modelopt-mxfp4": partial(mxfp4, maker="modelopt"),
    "modelopt-fp8": partial(modelopt_fp8, shape=(), block=ALL),
    "modelopt-fp8-rows": partial(modelopt_fp8, shape=(ROWS,), block=(1, COLUMNS)),
    "modelopt-fp8-blocks": partial(modelopt_fp8, shape=(1, 1, 1, 1), block=(128, 128)),
    "modelopt-awq": modelopt_awq,
    "quark-mxfp4": partial(mxfp4, maker="quark"),
    "quark-fp8": partial(by_rows, maker="quark", dtype=FP8, names=PLAIN),
    "torchao-groups": torchao,
    "quanto-int8": partial(by_rows, maker="quanto", dtype=np.int8, names=QUANTO),
    "quanto-fp8": partial(by_rows, maker="quanto", dtype=FP8, names=QUANTO),
    "bnb-int8": partial(by_rows, maker="bitsandbytes", dtype=np.int8, names={"codes": "m.weight", "scales": "m.SCB"}),
    "gpt-oss": gpt_oss,
    "ranged": ranged,
}
