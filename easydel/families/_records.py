"""Records made from those of another family: of a wider class, or with other parts in some layers."""

from collections.abc import Container
from dataclasses import fields, replace
from typing import Any, TypeVar

from easydel.families._parts import Part, Tower

R = TypeVar("R")


def widened(kind: type[R], record: Any, **more: Any) -> R:
    """Returns a `kind`, a class derived from the record's, with the fields of `record` and `more`."""
    return kind(**{field.name: getattr(record, field.name) for field in fields(record)} | more)


def with_ffn(tower: Tower, layers: Container[int], ffn: Part) -> Tower:
    """Returns the tower with `ffn` as the feed-forward of these layers."""
    return replace(tower, blocks=tuple(replace(b, ffn=ffn) if i in layers else b for i, b in enumerate(tower.blocks)))
