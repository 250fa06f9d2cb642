"""Several weight files as one table of tensors."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from easydel.checkpoint.files import INDEX_SUFFIX, read_index
from easydel.checkpoint.gguf import check_split, read_gguf
from easydel.checkpoint.problems import Problems
from easydel.checkpoint.safetensors import read_safetensors
from easydel.checkpoint.tensor import ByteSource, Tensor
from easydel.checkpoint.torch_bin import read_torch
from easydel.errors import CheckpointError, listed

Format = Literal["safetensors", "torch", "gguf"]
FORMATS: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".gguf": "gguf",
}
_READERS: dict[Format, Callable[[Path], tuple[list[Tensor], dict[str, Any]]]] = {
    "safetensors": read_safetensors,
    "torch": read_torch,
    "gguf": read_gguf,
}
REMOTE_THREADS = 8  # they mostly wait for headers


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name, in the order of their bytes; `metadata` holds the other entries of the files.

    `catalog` is the file that lists the tensors: the index, or without one the (first) file of weights.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        files: Sequence[Path],
        format: Format,
        metadata: dict[str, Any],
        index: Path | None = None,
    ):
        self._tensors = dict(tensors)
        self.files = list(files)
        self.catalog = index or self.files[0]
        self.format = format
        self.metadata = metadata

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def items(self) -> ItemsView[str, Tensor]:  # Mapping's own looks each up again
        return self._tensors.items()

    def values(self) -> ValuesView[Tensor]:
        return self._tensors.values()

    @property
    def total_bytes(self) -> int:
        """Bytes that the tensors take in the files."""
        return sum(tensor.nbytes for tensor in self.values())


def open_checkpoint(files: Sequence[Path]) -> Checkpoint:
    """Reads the headers of all files, which must be of one format, and checks them: no weight is read.

    An index (`*.index.json`) among the files includes its shards, and every name in it must be in the stated shard.
    Tensors that an index does not mention are kept. Raises CheckpointError.
    """
    files = [Path(file) for file in files]
    indexes = {file: read_index(file) for file in files if file.name.endswith(INDEX_SUFFIX)}
    shards = [file.parent / shard for file, names in indexes.items() for shard in sorted(set(names.values()))]
    weights = list(dict.fromkeys([file for file in files if file not in indexes] + shards))
    format = _format(weights)
    tensors, metadata = _read_all(weights, _READERS[format])
    check_split(weights, metadata, len(tensors))
    for file, names in indexes.items():
        _check_index(file, file.parent, names, tensors)
    return Checkpoint(tensors, weights, format, metadata, next(iter(indexes), None))


def open_remote(files: Mapping[Path, ByteSource], index: Path | None = None) -> Checkpoint:
    """Opens safetensors or GGUF files on another machine, all in one folder; a local `index` names them."""
    format: Format = "gguf" if next(iter(files)).suffix == ".gguf" else "safetensors"
    read = read_gguf if format == "gguf" else read_safetensors
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        headers = {file: pool.submit(read, file, source) for file, source in files.items()}
        tensors, metadata = _read_all(list(files), lambda file: headers[file].result())
    check_split(list(files), metadata, len(tensors))
    if index is not None:
        _check_index(index, next(iter(files)).parent, read_index(index, local=False), tensors)
    return Checkpoint(tensors, list(files), format, metadata, index)


def _format(files: Sequence[Path]) -> Format:
    if not files:
        raise CheckpointError("no weight files")
    for file in files:
        if not file.is_file():  # opening a named pipe would wait for ever
            raise CheckpointError("is missing, or not a regular file", file=file)
        if file.suffix not in FORMATS:
            raise CheckpointError(
                "is not a weight file", file=file, hint=f"its name should end in {', '.join(FORMATS)}"
            )
    formats = {FORMATS[file.suffix] for file in files}
    if len(formats) > 1:
        raise CheckpointError(f"the files are of several formats: {', '.join(sorted(formats))}", file=files[0])
    return FORMATS[files[0].suffix]


def _read_all(
    files: Sequence[Path], read: Callable[[Path], tuple[list[Tensor], dict[str, Any]]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    broken: list[CheckpointError] = []
    twice: list[Tensor] = []
    for file in files:
        try:
            found, more = read(file)
        except CheckpointError as error:
            broken.append(error)
            continue
        twice += [tensor for tensor in found if tensor.name in tensors]
        tensors.update((tensor.name, tensor) for tensor in found)
        metadata = {**more, **metadata}
    _raise_broken(broken)
    if twice:
        problems = Problems(twice[0].file)
        for tensor in twice:
            problems.add(f"is in {tensor.file.name}, but also in a file before it", tensor.name)
        problems.check()
    return tensors, metadata


def _raise_broken(broken: Sequence[CheckpointError]) -> None:
    if len(broken) == 1:
        raise broken[0]
    if broken:
        error = CheckpointError(f"{len(broken)} broken files{listed([str(error) for error in broken])}")
        error.file, error.tensor = broken[0].file, broken[0].tensor
        raise error


def _check_index(index: Path, folder: Path, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    problems = Problems(index)
    files = {shard: folder / shard for shard in set(names.values())}
    for name, shard in names.items():
        tensor = tensors.get(name)
        if tensor is None or (tensor.file is not files[shard] and tensor.file != files[shard]):
            where = "no shard has it" if tensor is None else f"it is in {_told(tensor.file, folder)}"
            problems.add(f"should be in {shard}, but {where}", name)
    problems.check(hint="index and shards do not belong together, or a shard is incomplete; get them again")


def _told(file: Path, folder: Path) -> str:
    """Returns the name of a file in `folder`, the whole path of any other."""
    return file.name if file.parent == folder else str(file)
