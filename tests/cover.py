"""A set of cases that together show every idea, for the costly tests.

Whether layers can be scanned, split or stored in 8 bits depends on the records that a model is made of and on the kinds
of entries in its table of names, not on its family. So those are a case's features, and `COVER` is a small set of cases
that have all features of all cases. It grows with ideas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import combinations
from typing import Any

from cases import Case, all_cases
from trained import described, empty

from easydel.layers.stack import stacks
from easydel.tree import flatten


def settings(record: Any) -> Iterator[tuple[Any, Field[Any], Any]]:
    """(record, field, value) of `record` and of all records in it; of a sequence, each different value."""
    for field in fields(record):
        for value in elements(getattr(record, field.name)):
            yield record, field, value
            if is_dataclass(value):
                yield from settings(value)


def elements(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [value] if value else []
    return list(dict.fromkeys(value)) if isinstance(value, tuple | list) else [value]


def features(record: Any, shown: Callable[[Any], str]) -> Iterator[str]:
    """The classes of `record` and the records in it, and their fields that are not as by default, values as `shown`."""
    yield type(record).__name__
    for owner, field, value in settings(record):
        if is_dataclass(value):
            yield type(value).__name__
        if value != (field.default if field.default_factory is MISSING else field.default_factory()):
            yield f"{type(owner).__name__}.{field.name}={shown(value)}"


def choice(value: Any) -> str:
    """What a value is among those that it might be. Numbers are all alike."""
    if value is None or isinstance(value, bool | str):
        return str(value)
    return type(value).__name__ if is_dataclass(value) else "set"


def layout(value: Any) -> str:
    """Of what stands in a table of names only functions are choices, the rest is names."""
    return value.__qualname__ if callable(value) else type(value).__name__


def features_of(case: Case) -> frozenset[str]:
    record, names, _ = described(case)
    shapes = {path: leaf.shape for path, leaf in flatten(empty(case).params).items()}
    found = {*features(record, choice), *features(names, layout)}
    found |= {operations(names.expression(path, shapes)) for path in shapes}
    for blocks in record.layer_stacks.values():
        found |= {pair for block in blocks for pair in pairs(block)}
        found |= {f"{length(layers)} in {number(len(stacks(blocks)))}" for layers in stacks(blocks).values()}
    return frozenset(found)


def operations(expression: Any) -> str:
    """The classes of an expression over tensors, from the outside in."""
    inner = [one for field in fields(expression) for one in elements(getattr(expression, field.name))]
    return ">".join([type(expression).__name__, *(operations(one) for one in inner[:1] if is_dataclass(one))])


def pairs(block: Any) -> Iterator[str]:
    """Of the parts of a block, which stand together."""
    parts = {type(value).__name__ for field in fields(block) if is_dataclass(value := getattr(block, field.name))}
    return (f"{one} beside {other}" for one, other in combinations(sorted(parts), 2))


def length(layers: list[int]) -> str:
    if len(layers) == 1:
        return "a layer"
    return "neighbours" if layers[1] == layers[0] + 1 else "every n-th layer"


def number(stacks: int) -> str:
    return "one stack" if stacks == 1 else "several stacks"


def cover(sets: Mapping[str, frozenset[str]]) -> list[str]:
    """Names that have all features: each time the one that adds most, of equals the smaller, and then by name."""
    left, chosen = frozenset().union(*sets.values()), []
    while left:
        chosen.append(min(sets, key=lambda name: (-len(sets[name] & left), len(sets[name]), name)))
        left -= sets[chosen[-1]]
    return chosen


def records_of(case: Case) -> frozenset[str]:
    """The classes of the records that a case is made of."""
    return frozenset(feature for feature in features(described(case)[0], choice) if "=" not in feature)


@cache
def covering_cases() -> list[Case]:
    """Cases that together have every feature of all cases."""
    return covering(all_cases(), features_of)


def covering(cases: Iterable[Case], kind: Callable[[Case], frozenset[str]]) -> list[Case]:
    """Of `cases`, some that together have all features of that kind."""
    by_name = {case.name: case for case in cases}
    return [by_name[name] for name in cover({name: kind(case) for name, case in by_name.items()})]
