"""The placement of parameters: footprints summed up in a few rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from easydel.cli.tables import print_table, size

if TYPE_CHECKING:
    from easydel.sharding import Footprint

GROUPS = ("embedding", "attention", "mlp", "experts", "mixer", "norms", "other", "head")
BESIDE = ("_scale", "_offset", "_factor", "_order", "_gain")
_MLP = ("mlp", "gate", "router", "shared_expert", "shared_experts")


@dataclass(frozen=True)
class Row:
    """Parameters of one kind with the same split; bytes are their sums."""

    group: str
    names: tuple[str, ...]
    split: str
    tensors: int
    total_bytes: int
    device_bytes: int
    copies: int
    why: str


def rows_of(footprints: Iterable[Footprint], mesh: Mapping[str, int]) -> list[Row]:
    """Returns rows in the order of the model; `mesh` is the size of each axis."""
    kinds: dict[tuple[str, str, str], list[Footprint]] = {}
    for print_ in footprints:
        why = print_.why.removeprefix(f"{print_.path}: ")
        kinds.setdefault((group_of(print_.path), split_of(print_.spec, mesh), why), []).append(print_)
    rows = [
        Row(
            group=group,
            names=tuple(dict.fromkeys(_name(print_.path) for print_ in prints)),
            split=split,
            tensors=len(prints),
            total_bytes=sum(print_.total_bytes for print_ in prints),
            device_bytes=sum(print_.device_bytes for print_ in prints),
            copies=prints[0].copies,
            why=why,
        )
        for (group, split, why), prints in kinds.items()
    ]
    return sorted(rows, key=lambda row: (GROUPS.index(row.group), -row.device_bytes))


def group_of(path: str) -> str:
    """Returns the part of a model that a parameter belongs to, by its canonical path."""
    *modules, _ = path.split("/")
    if "norm" in modules[-1]:
        return "norms"
    if "experts" in modules:
        return "experts"
    if any("attn" in name or "attention" in name for name in modules):
        return "attention"
    if any(name in _MLP for name in modules):
        return "mlp"
    if "lm_head" in modules:
        return "head"
    if "layers" in modules:
        return "mixer"
    return "embedding" if any("embed" in name for name in modules) else "other"


def split_of(spec: Iterable[Any], mesh: Mapping[str, int]) -> str:
    """Returns the mesh axes of each dimension, "[tp, fsdp]"; "whole" if none is split."""
    dims = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
    parts = ["*".join(name for name in names if mesh[name] > 1) or "-" for names in dims]
    return f"[{', '.join(parts)}]" if set(parts) - {"-"} else "whole"


def print_rows(rows: Sequence[Row], file: TextIO | None = None) -> None:
    """Prints the rows as a table, with their totals."""
    tensors, total_bytes, device_bytes = (
        sum(getattr(row, name) for row in rows) for name in ("tensors", "total_bytes", "device_bytes")
    )
    print_table(
        ("group", "parameters", "split", "tensors", "bytes", "per device"),
        [
            (row.group, " ".join(row.names), row.split, str(row.tensors), size(row.total_bytes), size(row.device_bytes))
            for row in rows
        ],
        numbers=("tensors", "bytes", "per device"),
        total=("total", "", "", str(tensors), size(total_bytes), size(device_bytes)),
        file=file,
    )


def mesh_text(mesh: Mapping[str, int]) -> str:
    """Returns the mesh as text, "dp=1 fsdp=8 tp=1 sp=1"."""
    return " ".join(f"{name}={count}" for name, count in mesh.items())


def _name(path: str) -> str:
    """Returns a parameter's name in a row: its module, or its role in the module."""
    *_, module, leaf = path.split("/")
    if leaf.endswith(BESIDE):
        return "scales"
    if leaf in ("kernel", "embedding") or "norm" in module:
        return module
    return "biases" if leaf == "bias" else f"{module}.{leaf}"
