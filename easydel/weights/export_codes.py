"""Parameters stored by codes as the tensors of compressed-tensors, which transformers and vLLM load.

Integers of 2 to 8 bits, by rows or in blocks of a row, are packed into words (pack-quantized); float8 is written as it
is, with its scales beside it (float-quantized). All other forms have no such tensors. Integers of 8 bits by rows could
be int-quantized as well, but vLLM takes that for activations that are quantized, too, and refuses weights alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

from easydel.forms import BESIDE, NARROW, OFFSET, SCALE, Form, packed
from easydel.weights.export import Entry, Parameters
from easydel.weights.expressions import Expression, Rows, Source, Stack, assemble, source_names
from easydel.weights.names import Names
from easydel.weights.plan import head_and_embedding

MATRIX = 2  # dimensions
WORD_BYTES = 4
BYTE = 8
BFLOAT16, FLOAT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
SCALES = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
NARROWEST = {bits: np.dtype(getattr(ml_dtypes, f"uint{bits}")) for bits in sorted({*NARROW.values()})}
WEIGHT = ".weight"


@dataclass(frozen=True)
class Scheme:
    """How compressed-tensors describes the weights of some modules."""

    num_bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int | None
    block_structure: tuple[int, int] | None

    @property
    def format(self) -> str:
        return "float-quantized" if self.type == "float" else "pack-quantized"


def scheme_of(form: Form, columns: int, scale: np.dtype, shift: np.dtype | None) -> Scheme | None:
    """Returns the scheme of rows of so many columns; None for forms and dtypes that compressed-tensors has not."""
    signed, height, width = form.code.name.startswith("int"), *form.block
    integers, zeros = signed or form.code.name.startswith("uint"), form.shift == "zero"
    if form.table or form.extra or form.shift == "offset" or form.step > 1 or scale not in SCALES:
        return None
    if not (form.code == FLOAT8 and not zeros) and not (integers and zeros != signed):
        return None
    if zeros and shift not in BYTES:
        return None
    rows, blocks = form.is_by_rows(columns), height > 1
    if blocks and integers:
        return None
    strategy = "channel" if rows else "block" if blocks else "group"
    kind = "int" if integers else "float"
    group, structure = width if strategy == "group" else None, form.block if blocks else None
    return Scheme(form.bits, kind, not zeros, strategy, group, structure)


@dataclass(frozen=True)
class CodedExport:
    """All tensors to write, and the config's entry.

    `coded` names those that stand for codes, and `floats` the matrices of codes that are written as floats.
    """

    entries: list[Entry]
    coded: set[str]
    floats: set[str]
    settings: dict[str, Any]


def with_codes(entries: list[Entry], stored: Parameters, names: Names) -> CodedExport:
    """Returns `entries` (floats) with codes in the place of those that compressed-tensors can describe.

    `stored` are the parameters as they are stored.
    """
    shapes = stored.shapes()
    forms = {path: form for path in shapes if (form := stored.form_of(path)) is not None}
    beside = {f"{path}{end}" for path in forms for end in BESIDE}
    shapes = {path: shape for path, shape in shapes.items() if path not in beside}
    shapes |= {path: (*shapes[path][:-1], shapes[path][-1] * form.per_byte) for path, form in forms.items()}
    expressions = {path: names.expression(path, shapes) for path in shapes}
    readers = source_names(expressions)
    schemes: dict[str, Scheme] = {}
    written: list[Entry] = []
    for entry in entries:
        name, shape, *_ = entry
        matrix = _Matrix(stored, forms, expressions, name, readers[name], shape)
        if (scheme := matrix.scheme()) is None:
            written.append(entry)
        else:
            schemes[name.removesuffix(WEIGHT)] = scheme
            written += matrix.entries(scheme)
    # of stacked experts, each of these arrays is fetched once if it is needed for one expert after the other
    written.sort(key=lambda entry: [entry[0].endswith(end) for end in ("_zero_point", "_scale")])
    coded = {f"{module}{WEIGHT}" for module in schemes}
    floats = [(name, shape) for name, shape, *_ in entries if name not in coded]
    names_of = {name for name, _ in floats}
    linear = {name for name, shape in floats if len(shape) == MATRIX}
    linear |= {head_and_embedding(names)[0]} - coded  # a tied one is in no file, and Linear all the same
    return CodedExport(
        entries=written,
        coded={entry[0] for entry in written} - names_of,
        floats={name for name in names_of if not forms.keys().isdisjoint(readers[name])},
        settings=_settings(schemes, [name.removesuffix(WEIGHT) for name in linear]),
    )


@dataclass(frozen=True)
class _Matrix:
    """A matrix `name` of the checkpoint that the parameters `paths` are parts of."""

    stored: Parameters
    forms: Mapping[str, Form]
    expressions: Mapping[str, Expression]
    name: str
    paths: list[str]
    shape: tuple[int, ...]

    def scheme(self) -> Scheme | None:
        """Returns the scheme of all parts, if that is one, and if parts are rows."""
        if len(self.shape) != MATRIX or not self.paths or not self.name.endswith(WEIGHT):
            return None
        found = {self._scheme_of(path) for path in self.paths}
        one = found.pop() if len(found) == 1 else None
        if one is None or len({self.stored.dtype_of(f"{path}{SCALE}") for path in self.paths}) > 1:
            return None
        in_pieces = any(not _is_whole(self.expressions[path]) for path in self.paths)
        return None if one.block_structure and in_pieces else one

    def _scheme_of(self, path: str) -> Scheme | None:
        form, expression = self.forms.get(path), self.expressions[path]
        if form is None or not (_is_whole(expression) or _are_rows(expression)) or path.endswith("/embedding"):
            return None
        shift = self.stored.dtype_of(f"{path}{OFFSET}") if form.shift else None
        return scheme_of(form, self.shape[-1], self.stored.dtype_of(f"{path}{SCALE}"), shift)

    def entries(self, scheme: Scheme) -> list[Entry]:
        """Returns the tensors that stand for the matrix."""
        form = self.forms[self.paths[0]]
        rows, columns = self.shape
        blocks = form.blocks(self.shape)
        scale = self.stored.dtype_of(f"{self.paths[0]}{SCALE}")
        found: list[Entry] = [(f"{self.name}_scale", blocks, scale, lambda: self._put(SCALE, scale))]
        if scheme.format != "pack-quantized":
            return [(self.name, self.shape, form.code, lambda: self._put("", form.code)), *found]
        words, size = np.dtype(np.int32), np.dtype(np.int64)
        wide = -(-columns * form.bits // (BYTE * WORD_BYTES))
        codes: Entry = (
            f"{self.name}_packed",
            (rows, wide),
            words,
            lambda: _words(_unsigned(self._put("", form.held), form)),
        )
        found += [(f"{self.name}_shape", (2,), size, lambda: np.array(self.shape, size))]
        if form.shift:
            high = -(-rows * form.bits // (BYTE * WORD_BYTES))
            found.append((f"{self.name}_zero_point", (high, blocks[1]), words, lambda: self._zeros(form)))
        return [codes, *found]

    def _zeros(self, form: Form) -> np.ndarray:
        """Returns zero points packed along rows."""
        zeros = self._put(OFFSET, np.dtype(np.uint8)).view(np.uint8).T
        room = BYTE // form.bits
        padded = np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % room)))
        code = NARROWEST.get(form.bits, padded.dtype)
        return np.ascontiguousarray(_words(packed(padded.view(code), Form(code, (1, 1)))).T)

    def _put(self, end: str, dtype: np.dtype) -> np.ndarray:
        """Returns the codes, scales or zeros of all parts, put together as their rows are."""
        pieces = []
        for path in self.paths:
            array = self.stored[f"{path}{end}"]
            if end and self.forms[path].is_by_rows(self.shape[-1]):
                array = array[..., None]
            pieces += [piece for piece in self.expressions[path].pieces(array) if piece[0] == self.name]
        height = sum(len(values) for *_, values in pieces)
        return assemble((height, pieces[0][2].shape[-1]), dtype, pieces)


def _is_whole(expression: Expression) -> bool:
    """True if the rows of tensors are those of the parameter, one after the other."""
    if isinstance(expression, Stack):
        return all(map(_is_whole, expression.of))
    return isinstance(expression, Source)


def _are_rows(expression: Expression) -> bool:
    if isinstance(expression, Stack):
        return all(map(_are_rows, expression.of))
    return isinstance(expression, Source) or (
        isinstance(expression, Rows) and expression.dim == -2 and isinstance(expression.of, Source)
    )


def _unsigned(held: np.ndarray, form: Form) -> np.ndarray:
    """Returns bytes of codes as numbers from 0 on: of signed ones the highest bit is turned."""
    bytes_ = np.ascontiguousarray(held).view(np.uint8)
    if form.shift:
        return bytes_
    highest = sum(1 << bit for bit in range(form.bits - 1, BYTE, form.bits))
    return bytes_ ^ np.uint8(highest)


def _words(bytes_: np.ndarray) -> np.ndarray:
    """Returns rows of bytes as rows of int32."""
    padded = np.pad(bytes_, ((0, 0), (0, -bytes_.shape[1] % WORD_BYTES)))
    return np.ascontiguousarray(padded).view("<i4")


def _settings(chosen: Mapping[str, Scheme], linear: Collection[str]) -> dict[str, Any]:
    """Returns the entry of config.json. Modules of the commonest scheme are all that are Linear and not named."""
    counts = Counter(chosen.values())
    groups: dict[str, Any] = {}
    for place, (scheme, _) in enumerate(counts.most_common()):
        modules = [module for module, own in chosen.items() if own == scheme]
        groups[f"group_{place}"] = {
            "targets": modules if place else ["Linear"],
            "weights": {key: value for key, value in asdict(scheme).items() if value is not None} | {"dynamic": False},
            "input_activations": None,
            "output_activations": None,
            "format": scheme.format,
        }
    formats = {scheme.format for scheme in counts}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": sorted(linear),
        "kv_cache_scheme": None,
    }
