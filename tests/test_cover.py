"""Every record and every choice between records is in a case, so the cover has it too."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cases import all_cases, cases_in
from cover import choice, cover, features_of, settings
from stand_ins import RECORDS as STAND_INS
from trained import described

import easydel.families
import easydel.layers
from easydel.families import all_families
from easydel.layers.norm import LayerNorm, RMSNorm
from easydel.layers.part import Part

# Dataclasses that no model is made of.
OTHERS = {"Run", "Cached", "Context", "Cross", "Seen", "Family", "Wrapper"}
NORMS = {RMSNorm, LayerNorm}  # either goes into any slot, and both are called alike
# Choices that neither a case nor a stand-in makes. Who adds the first removes it here.
UNUSED = {
    "Block.ffn_residual=Parallel": "the residual of a whole block has it",
    "Block.ffn_residual=Post": "the residual of a whole block has it",
    "GrowingScale.start=set": "a scale of its own",
    "MLP.norm=LayerNorm": "as in GLU",
    "MLP.norm=RMSNorm": "as in GLU",
    "ShiftRight.first=None": "configs may lack this token",
    "ShiftRight.padding=None": "configs may lack this token",
    "Sinusoidal.interleaved=True": "of waves in other orders",
    "Transform.norm=None": "of heads to come",
}


def records() -> list[type]:
    """Every record class of layers/, families/ and the whole models."""
    names = ["easydel.decoder", "easydel.encdec"]
    for package in (easydel.layers, easydel.families):
        names += [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(name) for name in names]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    found = {one for one in found if is_dataclass(one) and one.__module__ in names and one.__name__ not in OTHERS}
    return [one for one in found if getattr(one, "build", None) is not Part.build]  # others have it in common


@cache
def seen() -> frozenset[str]:
    """Class names, and the kinds of values that each field has in some case, or in a stand-in for families to come."""
    found = set()
    for record in [*(described(case)[0] for case in all_cases()), *STAND_INS.values()]:
        found.add(type(record).__name__)
        for owner, field, value in settings(record):
            for base in type(owner).__mro__[:-1]:
                found |= {f"{base.__name__}.{field.name}={kind}" for kind in kinds_of(value)}
            if is_dataclass(value):
                found.add(type(value).__name__)
    return frozenset(found)


def kinds_of(value: Any) -> list[str]:
    if type(value) in NORMS:
        return [norm.__name__ for norm in NORMS]
    return [base.__name__ for base in type(value).__mro__[:-1]] if is_dataclass(value) else [choice(value)]


def choices(kind: Any) -> Iterator[str]:
    """What a field of that type can be, as far as there are names for it."""
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from choices(one)
    elif get_origin(kind) in (tuple, list):
        yield from choices(get_args(kind)[0])
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif kind is bool:
        yield from ("True", "False")
    elif kind in (int, float):
        yield "set"
    elif is_dataclass(kind) or kind is NoneType:
        yield "None" if kind is NoneType else kind.__name__


def test_every_record_stands_in_a_case():
    assert {one.__name__ for one in records()} - seen() == set()


def test_every_choice_of_a_record_stands_in_a_case():
    missing = set()
    for one in records():
        hints = get_type_hints(one)
        for field in one.__annotations__.keys() & {field.name for field in fields(one)}:
            missing |= {f"{one.__name__}.{field}={kind}" for kind in choices(hints[field])} - seen()
    assert missing == set(UNUSED)


def test_the_cover_has_every_feature_of_every_case():
    sets = {case.name: features_of(case) for case in all_cases()}
    chosen = cover(sets)
    assert frozenset().union(*map(sets.get, chosen)) == frozenset().union(*sets.values())
    assert chosen == cover(dict(reversed(sets.items())))
    assert len(chosen) < len(sets) / 2


def test_every_family_has_cases_in_a_file_of_its_name():
    for family in all_families():
        cases = cases_in(family.model_type)
        assert {case.model_type for case in cases} == {family.model_type}
        assert family.encoder_decoder in {case.seq2seq for case in cases}


def test_names_of_cases_differ():
    names = [case.name for case in all_cases()]
    assert sorted(names) == sorted(set(names))


def test_the_cover_is_found_without_torch_and_transformers():
    code = "import sys, cover; cover.covering_cases(); print({'torch', 'transformers'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert found.stdout == "set()\n", found.stderr
