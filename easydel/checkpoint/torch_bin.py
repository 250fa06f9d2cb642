"""Files of torch.save, read without torch: https://docs.pytorch.org/docs/stable/notes/serialization.html

Since version 1.6 they are uncompressed zip archives: `<root>/data.pkl` holds the objects, `<root>/data/<key>` the bytes
of each storage. Before that they are a sequence of pickles followed by the storages. Tensors are views of storages,
which several tensors may share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from easydel.checkpoint.pickled import MAX_STEPS, STEPS_PER_TENSOR, unpickle
from easydel.checkpoint.problems import Problems, refuse_impostor
from easydel.checkpoint.tensor import MAX_NAME, Tensor, extent, map_file, name_problem, row_major, shape_problem
from easydel.checkpoint.torch_objects import ALLOWED, Storage, View, storage_from_id
from easydel.checkpoint.torch_zip import Span, read_archive
from easydel.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
NESTED = ("state_dict", "model")  # the keys under which training scripts put a state dict
_TAR_MAGIC_AT = 257


def read_torch(file: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns a state dict's tensors in the order of their bytes. `metadata["ignored"]` names its other entries."""
    content = memoryview(map_file(file))
    if content[:4] == b"PK\x03\x04":
        value, spans = _read_zip(file)
    elif content[:1] == b"\x80":
        value, spans = _read_legacy(file, content)
    else:
        _refuse(file, content)
    views, ignored = _state_dict(file, value)
    problems = Problems(file)
    tensors = [tensor for name, view in views.items() if (tensor := _tensor(file, name, view, spans, problems))]
    problems.check(hint="the file is damaged; get it again")
    tensors.sort(key=lambda tensor: tensor.offset)
    return tensors, {"ignored": ignored} if ignored else {}


def _refuse(file: Path, content: memoryview) -> NoReturn:
    if content[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        raise CheckpointError(
            "is a tar archive, as torch.save wrote it before version 0.1.10",
            file=file,
            hint="load it with torch and save it again",
        )
    refuse_impostor(file, bytes(content[:64]))
    if content[8:9] == b"{":
        raise CheckpointError("holds safetensors data", file=file, hint="rename it to end in .safetensors")
    raise CheckpointError("is not a file of torch.save", file=file, hint="download it again")


def _read_zip(file: Path) -> tuple[object, Mapping[str, Span]]:
    spans = read_archive(file)
    content = map_file(file)
    storages = {name.removeprefix("data/"): span for name, span in spans.items() if name.startswith("data/")}
    start, size = spans["data.pkl"]
    pickled = memoryview(content)[start : start + size]
    steps = max(MAX_STEPS, STEPS_PER_TENSOR * len(storages))
    value, used = unpickle(pickled, file, ALLOWED, _zip_storage, steps)
    if used != size:
        raise CheckpointError(f"{size - used} bytes follow the pickle in data.pkl", file=file)
    return value, storages


def _zip_storage(identifier: object) -> Storage:
    return storage_from_id(identifier, 5)


def _read_legacy(file: Path, content: memoryview) -> tuple[object, Mapping[str, Span]]:
    storages: dict[str, Storage] = {}

    def persistent(identifier: object) -> Storage:
        storage = storage_from_id(identifier, 6)
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key} in two types or sizes")
        return storage

    position = 0

    def load() -> Any:
        nonlocal position
        value, size = unpickle(content[position:], file, ALLOWED, persistent)
        position += size
        return value

    _check_legacy_header(file, load)
    value = load()
    keys = load()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise CheckpointError("is damaged: its list of storages is no list of names", file=file)
    return value, _legacy_spans(file, content, position, keys, storages)


def _check_legacy_header(file: Path, load: Callable[[], Any]) -> None:
    if load() != LEGACY_MAGIC:
        raise CheckpointError(
            "is a pickle, but not one of torch.save", file=file, hint="save a state dict with torch.save"
        )
    if (protocol := load()) != LEGACY_PROTOCOL:
        raise CheckpointError(f"has protocol version {str(protocol)[:20]}, not {LEGACY_PROTOCOL}", file=file)
    system = load()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError("its bytes are not in little-endian order", file=file)


def _legacy_spans(
    file: Path, content: memoryview, position: int, keys: list[str], storages: Mapping[str, Storage]
) -> dict[str, Span]:
    """Returns the bytes of each storage: the number of its elements in 8 bytes, then the elements."""
    spans: dict[str, Span] = {}
    for key in keys:
        storage = storages.get(key)
        if storage is None:
            raise CheckpointError(f"no tensor says what type its storage {key[:100]!r} has", file=file)
        end = position + 8 + storage.nbytes
        if end > len(content):
            raise CheckpointError(f"is truncated: {end - len(content)} bytes of storage {key!r} are missing", file=file)
        count = int.from_bytes(content[position : position + 8], "little", signed=True)
        if count != storage.elements:
            raise CheckpointError(f"its storage {key!r} has {count} elements, not {storage.elements}", file=file)
        spans[key] = (position + 8, storage.nbytes)
        position = end
    if position != len(content):
        raise CheckpointError(f"{len(content) - position} bytes follow the last storage", file=file)
    return spans


def _state_dict(file: Path, value: object) -> tuple[dict[str, View], list[str]]:
    """Returns the tensors of a dict, or else of the dict under a well-known key, and the names of other entries."""
    kind = "tensor" if isinstance(value, View) else type(value).__name__
    if not isinstance(value, dict):
        raise CheckpointError(f"holds a {kind}, not a state dict", file=file)
    ignored: list[str] = []
    if not any(type(entry) is View for entry in value.values()):
        nested = [key for key in NESTED if type(value.get(key)) is dict]
        if len(nested) != 1:
            reason = f"dicts under both {nested}" if nested else f"no tensors, and no dict under {' or '.join(NESTED)}"
            raise CheckpointError(f"is not a state dict: it has {reason}", file=file)
        ignored = [str(key) for key in value if key != nested[0]]
        value = cast(dict[Any, Any], value[nested[0]])
    problems = Problems(file)
    views: dict[str, View] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            problems.add(f"the key {name} is not a name")
        elif isinstance(entry, View):
            views[name] = entry
        elif entry is None or type(entry) in (bool, int, float, str):
            ignored.append(name)
        else:
            problems.add(f"is a {type(entry).__name__}, neither a tensor nor a plain value", name)
    problems.check(hint="save the state dict alone")
    return views, ignored


def _tensor(file: Path, name: str, view: View, spans: Mapping[str, Span], problems: Problems) -> Tensor | None:
    if problem := name_problem(name) or _view_problem(view, spans):
        problems.add(problem, name[:MAX_NAME])
        return None
    size = view.dtype.itemsize
    plain = row_major(view.shape, size)  # strides of dimensions with at most one entry mean nothing and may be anything
    strides = tuple(
        stride * size if dim > 1 and 0 not in view.shape else own
        for dim, stride, own in zip(view.shape, view.strides, plain, strict=True)
    )
    offset = spans[view.storage.key][0] + view.offset * size
    return Tensor(name, view.shape, view.dtype, file, offset, strides)


def _view_problem(view: View, spans: Mapping[str, Span]) -> str | None:
    size = view.dtype.itemsize
    if problem := shape_problem(view.shape, size):
        return problem
    numbers = (view.offset, *view.strides)
    if len(view.strides) != len(view.shape) or any(type(number) is not int or number < 0 for number in numbers):
        return "its offset and strides are not one non-negative integer for each dimension"
    if view.storage.key not in spans:
        return f"its storage {view.storage.key[:100]!r} is missing"
    end = view.offset * size + extent(view.shape, [stride * size for stride in view.strides], size)
    if end > view.storage.nbytes:
        return f"reaches to byte {end} of a storage of {view.storage.nbytes} bytes"
    if view.storage.nbytes > spans[view.storage.key][1]:
        missing = view.storage.nbytes - spans[view.storage.key][1]
        return f"its storage {view.storage.key[:100]!r} is truncated: {missing} bytes are missing"
    return None
