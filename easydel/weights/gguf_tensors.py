"""Tensors of a GGUF file with the changes of llama.cpp's converters undone, for whichever part is read.

The converters (https://github.com/ggml-org/llama.cpp/tree/master/conversion) put rows into another order, add one to
norms, stack experts, split fused matrices and take exponentials. Each function of `Change` undoes one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from easydel.checkpoint import Tensor
from easydel.checkpoint.tensor import row_major
from easydel.errors import ConfigError
from easydel.weights.expressions import count_of, with_ends
from easydel.weights.reshape import regrouped
from easydel.weights.sources import FLOAT32, Changed, TensorSource

Config = Mapping[str, Any]
Index = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class HFTensor:
    """A tensor whose row r is the file's row `rows[r]`; `add` is added to every value.

    `transposed` swaps the last two dimensions. A `log` is that of the file's values, which are negative.
    """

    tensor: Tensor
    rows: np.ndarray | None = None
    add: float | None = None
    transposed: bool = False
    log: bool = False

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def file(self) -> Path:
        return self.tensor.file

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        *experts, rows, columns = self.tensor.shape if self.transposed else (0, 0)
        return (*experts, columns, rows) if self.transposed else self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype if self.add is None and not self.log else FLOAT32

    @property
    def turned(self) -> Tensor | None:
        return self.tensor if self.transposed else None

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns the slice `index`, as a view of the file where nothing needs to be computed."""
        if self.transposed:
            *experts, rows, columns = (*index, *(slice(None) for _ in range(len(self.shape) - len(index))))
            return self.tensor.read((*experts, columns, rows)).swapaxes(-1, -2)
        values = self._read_rows(index) if self.rows is not None and index else self.tensor.read(index)
        if self.rows is not None and not index:
            values = values[self.rows]
        if self.log:
            with np.errstate(invalid="ignore", divide="ignore"):  # a broken file gives NaN, which loading finds
                return np.log(-values.astype(np.float32))
        # float32: the converter also added to float32 values
        return values if self.add is None else values.astype(np.float32) + np.float32(self.add)

    def _read_rows(self, index: Index) -> np.ndarray:
        assert self.rows is not None
        wanted = self.rows[index[0]]
        first, stop = (wanted.min(), wanted.max() + 1) if len(wanted) else (0, 0)
        return self.tensor.read((slice(int(first), int(stop)), *index[1:]))[wanted - first]


@dataclass(frozen=True, eq=False)
class Joined:
    """Two tensors as one: along `axis`, number n is number `order[n]` of the first one's and then the second one's.

    `swapped` exchanges the last two dimensions of the result; `axis` is one of the parts'.
    """

    first: Tensor
    second: Tensor
    axis: int
    order: np.ndarray
    swapped: bool = False

    @property
    def name(self) -> str:
        return self.first.name

    @property
    def file(self) -> Path:
        return self.first.file

    @property
    def dtype(self) -> np.dtype:
        return np.promote_types(self.first.dtype, self.second.dtype)

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.first.shape)
        shape[self.axis] = len(self.order)
        return tuple([*shape[:-2], shape[-1], shape[-2]] if self.swapped else shape)

    @property
    def turned(self) -> Joined | None:
        return replace(self, swapped=False) if self.swapped else None

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns the slice `index`; of each part, the span that holds it is read."""
        full = [*index, *[slice(None)] * (len(self.shape) - len(index))]
        if self.swapped:
            full[-2:] = full[-1], full[-2]
            return replace(self, swapped=False).read(tuple(full)).swapaxes(-1, -2)
        wanted, size = self.order[full[self.axis]], self.first.shape[self.axis]
        shape = [len(range(*part.indices(dim))) for part, dim in zip(full, self.shape, strict=True)]
        out = np.moveaxis(np.empty(shape, self.dtype), self.axis, 0)
        for tensor, ours, before in ((self.first, wanted < size, 0), (self.second, wanted >= size, size)):
            places = wanted[ours] - before
            if len(places):
                full[self.axis] = slice(int(places.min()), int(places.max()) + 1)
                out[ours] = np.moveaxis(tensor.read(tuple(full)), self.axis, 0)[places - places.min()]
        return np.moveaxis(out, 0, self.axis)


@dataclass(frozen=True, eq=False)
class LatentKV:
    """kv_b_proj of latent attention from its halves: `keys` [heads, latent, nope], `values` [heads, v, latent]."""

    keys: Tensor
    values: Tensor

    @property
    def name(self) -> str:
        return self.keys.name

    @property
    def file(self) -> Path:
        return self.keys.file

    @property
    def dtype(self) -> np.dtype:
        return np.promote_types(self.keys.dtype, self.values.dtype)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        heads, latent, nope = self.keys.shape
        return heads * (nope + self.values.shape[1]), latent

    def read(self, index: Index = ()) -> np.ndarray:
        """Returns the slice `index`; whole heads are read."""
        rows, columns = (*index, *[slice(None)] * (2 - len(index)))
        wanted = np.arange(self.shape[0])[rows]
        if not len(wanted):
            return np.empty((0, len(range(*columns.indices(self.shape[1])))), self.dtype)
        each = self.shape[0] // self.keys.shape[0]
        heads = slice(int(wanted.min()) // each, int(wanted.max()) // each + 1)
        keys = self.keys.read((heads, columns)).swapaxes(1, 2)
        both = np.concatenate([keys, self.values.read((heads, slice(None), columns))], axis=1)
        return both.reshape(-1, both.shape[-1])[wanted - heads.start * each]


@dataclass(frozen=True, eq=False)
class Numbers:
    """A tensor all of whose numbers are one in the file's metadata, under the key `name`."""

    name: str
    shape: tuple[int, ...]
    file: Path
    value: float
    dtype: np.dtype = FLOAT32

    @property
    def nbytes(self) -> int:
        return 0

    def read(self, index: Index = ()) -> np.ndarray:
        return np.full(self.shape, self.value, self.dtype)[(*index, ...)]


@dataclass(frozen=True, eq=False)
class AllRows(Changed):
    """The matrices of all experts, one below the other; `reshaped` are the matrices."""

    @property
    def reshaped(self) -> TensorSource:
        return self.of

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, columns = self.of.shape
        return experts * rows, columns

    def read(self, index: Index = ()) -> np.ndarray:
        wanted = with_ends(index, self.shape)
        out = np.empty(tuple(map(count_of, wanted)), self.dtype)
        for place, part in regrouped(wanted, self.shape, self.of.shape):
            out[place] = self.of.read(part).reshape(out[place].shape)
        return out


Change = Callable[[Tensor, Config], TensorSource]
Join = Callable[[Tensor, Tensor, Config], TensorSource]


def expert(tensor: Tensor, number: int) -> Tensor:
    """Returns one expert of a tensor that stacks them in its first dimension."""
    return replace(
        tensor,
        shape=tensor.shape[1:],
        offset=tensor.offset + number * tensor.strides[0],
        strides=tensor.strides[1:],
    )


def by_kind(tensor: Tensor, config: Config) -> list[Tensor]:
    """Cuts a tensor into the rows of all queries, keys and values."""
    heads: Any = config.get("num_attention_heads")
    kv_heads: Any = config.get("num_key_value_heads", heads)
    _check_heads(tensor, heads + 2 * kv_heads, 1)
    dim = tensor.shape[0] // (heads + 2 * kv_heads)
    starts = [0, heads * dim, (heads + kv_heads) * dim]
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    return [
        replace(tensor, shape=(size, *tensor.shape[1:]), offset=tensor.offset + start * tensor.strides[0])
        for start, size in zip(starts, sizes, strict=True)
    ]


def rotary(tensor: Tensor, config: Config) -> HFTensor:
    """Undoes the order of rows in which the two channels of a rotation are side by side."""
    heads: Any = config.get("num_attention_heads" if "attn_q" in tensor.name else "num_key_value_heads")
    _check_heads(tensor, heads, 2)
    return HFTensor(tensor, rows=np.arange(tensor.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).ravel())


def one_more(tensor: Tensor, config: Config) -> HFTensor:
    """Undoes that one was added to a norm's weights."""
    return HFTensor(tensor, add=-1.0)


def transposed(tensor: Tensor, config: Config) -> HFTensor:
    """Turns matrices that are [in, out] on the Hub."""
    return HFTensor(tensor, transposed=len(tensor.shape) > 1)


def exponential(tensor: Tensor, config: Config) -> HFTensor:
    """Undoes A = -exp(A_log); Mamba 2's has a dimension of 1 at its end."""
    return HFTensor(reshaped(tensor, tensor.shape[:1]) if tensor.shape[1:] == (1,) else tensor, log=True)


def flat(tensor: Tensor, config: Config) -> TensorSource:
    """Undoes that a vector was cut into groups."""
    return reshaped(tensor, (int(np.prod(tensor.shape)),))


def convolution(tensor: Tensor, config: Config) -> Tensor:
    """Undoes that a kernel of a convolution by channels lost its middle dimension."""
    return reshaped(tensor, (tensor.shape[0], 1, *tensor.shape[1:]))


def row(tensor: Tensor, config: Config) -> TensorSource:
    """Undoes that a dimension of 1 in front was left out."""
    return reshaped(tensor, (1, *tensor.shape)) if len(tensor.shape) == 1 else tensor


def all_rows(tensor: Tensor, config: Config) -> TensorSource:
    """Undoes that the matrix of all experts was cut into one for each."""
    if len(tensor.shape) != 3:
        raise ConfigError(f"is {list(tensor.shape)}, expected one matrix for each expert", tensor=tensor.name)
    return AllRows(HFTensor(tensor))


def all_rows_turned(tensor: Tensor, config: Config) -> TensorSource:
    """Undoes that the matrix of all experts was cut into one for each, and these were transposed."""
    all_rows(tensor, config)
    return AllRows(HFTensor(tensor, transposed=True))


def by_head(key: str) -> Change:
    """Undoes that q, k and v of all heads follow each other: on the Hub, each head's are together."""

    def change(tensor: Tensor, config: Config) -> HFTensor:
        heads: Any = config.get(key)
        _check_heads(tensor, heads, 3)
        return HFTensor(tensor, rows=np.arange(tensor.shape[0]).reshape(3, heads, -1).swapaxes(0, 1).ravel())

    return change


def by_group(tensor: Tensor, config: Config) -> HFTensor:
    """Undoes that q, k and v follow each other: Falcon's groups have the queries of a key, the key, the value."""
    heads, groups = config.get("num_attention_heads"), config.get("num_kv_heads")
    if not (isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups == 0):
        raise ConfigError(f"has {heads} heads and {groups} of keys", file=tensor.file, tensor=tensor.name)
    _check_heads(tensor, heads + 2 * groups, 1)
    queries = np.arange(heads).reshape(groups, -1)
    keys = heads + np.arange(groups)[:, None]
    order = np.concatenate([queries, keys, keys + groups], axis=1).ravel()
    rows = np.arange(tensor.shape[0]).reshape(heads + 2 * groups, -1)
    return HFTensor(tensor, rows=rows[order].ravel())


def after(first: Tensor, second: Tensor, config: Config) -> TensorSource:
    """Joins rows of a gate and of what it gates."""
    axis = len(first.shape) - 2
    return Joined(first, second, axis, np.arange(first.shape[axis] + second.shape[axis]))


def beside(first: Tensor, second: Tensor, config: Config) -> TensorSource:
    """Joins columns of a gate and of what it gates, which are [experts, in, out] on the Hub."""
    if len(first.shape) != 3:
        raise ConfigError(f"is {list(first.shape)}, expected one matrix for each expert", tensor=first.name)
    return Joined(first, second, 1, np.arange(first.shape[1] + second.shape[1]), swapped=True)


def woven(first: Tensor, second: Tensor, config: Config) -> TensorSource:
    """Joins in turns, as in GPT-OSS: rows of matrices, which are [in, out] on the Hub, or entries of biases."""
    order = np.arange(2 * first.shape[1]).reshape(2, -1).T.ravel()
    return Joined(first, second, 1, order, swapped=len(first.shape) == 3)


def by_key_head(first: Tensor, second: Tensor, config: Config) -> TensorSource:
    """Joins queries, keys and values with their gates: on the Hub, those of each key's head are together."""
    heads: Any = config.get("linear_num_key_heads")
    _check_heads(second, heads, 1)
    keys, values = heads * config["linear_key_head_dim"], second.shape[0]
    if first.shape[0] != 2 * keys + values:
        problem = f"has {first.shape[0]} rows, expected {2 * keys + values}: queries, keys and values"
        raise ConfigError(problem, file=first.file, tensor=first.name)
    parts = np.split(np.arange(first.shape[0] + values), np.cumsum([keys, keys, values]))
    return Joined(first, second, 0, np.concatenate([part.reshape(heads, -1) for part in parts], axis=1).ravel())


def latent(first: Tensor, second: Tensor, config: Config) -> TensorSource:
    """Joins the halves of latent attention's `kv_b_proj`."""
    if len(first.shape) != 3 or len(second.shape) != 3 or first.shape[:2] != second.shape[::2]:
        found = f"is {list(first.shape)} beside {list(second.shape)}"
        raise ConfigError(f"{found}, expected [heads, latent, nope] and [heads, v, latent]", tensor=first.name)
    return LatentKV(first, second)


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.encoding is not None:  # no converter quantizes these
        raise ConfigError(f"is quantized as {tensor.encoding}", file=tensor.file, tensor=tensor.name)
    return replace(tensor, shape=shape, strides=row_major(shape, tensor.dtype.itemsize))


def _check_heads(tensor: Tensor, heads: object, parts: int) -> None:
    count = tensor.shape[0] if tensor.shape else 0
    if not isinstance(heads, int) or heads < 1 or count % (parts * heads):
        raise ConfigError(f"has {count} rows, which {heads} heads cannot share", file=tensor.file, tensor=tensor.name)
