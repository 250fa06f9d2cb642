"""The objects that the pickle of a state dict may refer to, as records instead of torch's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from easydel.checkpoint.pickled import Constructor, set_item
from easydel.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype("<u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "int8": np.dtype("<i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_STORAGES = {
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}


@dataclass(frozen=True)
class StorageType:
    """A torch storage class; `dtype` is None for bytes of no type."""

    dtype: np.dtype | None


@dataclass(frozen=True)
class Storage:
    """A run of elements in the file, under the name `key`."""

    key: str
    type: StorageType
    elements: int

    @property
    def nbytes(self) -> int:
        return self.elements * (self.type.dtype.itemsize if self.type.dtype else 1)


@dataclass(frozen=True)
class View:
    """A tensor: `offset` and `strides` count elements of `dtype` in the storage. Not yet checked against it."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage_from_id(identifier: object, length: int) -> Storage:
    """Returns the storage of a persistent id of `length` items: ("storage", type, key, device, elements[, view])."""
    if not isinstance(identifier, tuple) or len(identifier) != length or identifier[0] != "storage":
        raise TypeError("a persistent id that is no storage")
    _, kind, key, _, elements, *view = identifier
    if not isinstance(kind, StorageType) or type(key) is not str or type(elements) is not int or elements < 0:
        raise TypeError("a storage without type, key or size")
    if any(view):
        raise CheckpointError("has a storage that is a view of another storage, as torch wrote before 0.4")
    return Storage(key, kind, elements)


def _view(storage: object, dtype: object, offset: object, shape: object, strides: object) -> View:
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise TypeError("a tensor without a storage or dtype")
    if type(offset) is not int or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError("a tensor without offset, shape or strides")
    return View(storage, dtype, offset, shape, strides)


def _refuse_flags(flags: object) -> None:
    if flags:  # {"conj": True} or {"neg": True}: the bytes are not the values
        raise CheckpointError("has a lazily conjugated or negated tensor", hint="save tensor.resolve_conj() instead")


def _tensor_v2(
    storage: Any,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object = False,
    hooks: object = None,
    flags: object = None,
) -> View:
    _refuse_flags(flags)
    return _view(storage, storage.type.dtype if type(storage) is Storage else None, offset, shape, strides)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    flags: object = None,
) -> View:
    _refuse_flags(flags)
    return _view(storage, dtype, offset, shape, strides)


def _parameter(tensor: object, requires_grad: object, hooks: object) -> View:
    if not isinstance(tensor, View):
        raise TypeError("a parameter that is no tensor")
    return tensor


def _ordered_dict(pairs: object = ()) -> dict[Any, Any]:
    entries: dict[Any, Any] = {}
    if not isinstance(pairs, list | tuple):
        raise TypeError("an OrderedDict of something else than pairs")
    for pair in pairs:
        key, value = pair
        set_item(entries, key, value)
    return entries


def _size(dims: object = ()) -> tuple[Any, ...]:
    if not isinstance(dims, tuple):
        raise TypeError("a torch.Size of something else than a tuple")
    return dims


_CONSTRUCTORS = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
}
ALLOWED: dict[str, object] = {
    **{name: Constructor(name, build) for name, build in _CONSTRUCTORS.items()},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
    **{f"torch.{name}Storage": StorageType(DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType(None),
    "torch.UntypedStorage": StorageType(None),
}
