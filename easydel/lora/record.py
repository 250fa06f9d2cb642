"""The record of adapters: PEFT's `LoraConfig`, as far as it is plain arithmetic on parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from easydel.errors import ArgumentError

ALL_LINEAR = "all-linear"  # PEFT's name for all Linears but the head
BIASES = ("none", "lora_only", "all")
Pattern = Mapping[str, Any] | Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class LoRA:
    """Names, meaning and defaults of PEFT's `LoraConfig`.

    `target_modules` is "all-linear" (all but the head), a regular expression for whole names of modules, or a list of
    names or ends of names: ("q_proj", "mlp.down_proj"). The checkpoint's names count, as in PEFT, and ours.

    `rank_pattern` and `alpha_pattern` give modules, by regular expressions for ends of their names, another rank or
    alpha. `use_dora` learns the length of each row of the adapted kernels as well (Liu et al. 2024, arXiv:2402.09353).
    `lora_dropout` acts on what adapters see, in training alone. `bias` also trains biases: those of adapted modules
    ("lora_only"), or "all". `modules_to_save` are ends of names of modules that are trained as a whole.
    `target_parameters` names kernels of experts: "mlp.experts.gate_up_proj", "mlp.experts.down_proj", or ours.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] = ALL_LINEAR
    use_rslora: bool = False
    lora_dropout: float = 0.0
    bias: str = "none"
    use_dora: bool = False
    rank_pattern: Pattern = ()
    alpha_pattern: Pattern = ()
    modules_to_save: Sequence[str] = ()
    target_parameters: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        for name in ("modules_to_save", "target_parameters"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        _check_rank("r", self.r)
        _check_number("lora_alpha", self.lora_alpha)
        for name, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_number)):
            object.__setattr__(self, name, _pairs(name, getattr(self, name), check))
        for name in ("use_rslora", "use_dora"):
            if not isinstance(value := getattr(self, name), bool):
                raise ArgumentError(f"{name}={value!r}, expected True or False")
        _check_number("lora_dropout", self.lora_dropout)
        if not 0 <= self.lora_dropout < 1:
            raise ArgumentError(f"lora_dropout={self.lora_dropout!r}, expected a probability below 1")
        if self.bias not in BIASES:
            raise ArgumentError(f"bias={self.bias!r}, expected one of {', '.join(BIASES)}")

    @property
    def scale(self) -> float:
        """alpha / r, or with `use_rslora` alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def all_linear(self) -> bool:
        """True if every Linear but the head is a target; PEFT takes any case."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def at(self, *names: str) -> Self:
        """Returns the record of the one module with these names: its own rank and alpha, and no patterns."""
        own = {"r": _found(self.rank_pattern, names), "lora_alpha": _found(self.alpha_pattern, names)}
        given = {key: value for key, value in own.items() if value is not None}
        return replace(self, rank_pattern=(), alpha_pattern=(), **given)

    def selects(self, names: Sequence[str]) -> bool:
        """True if the module with these names (the checkpoint's and ours) is a target."""
        if self.all_linear:
            return "lm_head" not in names
        if isinstance(self.target_modules, str):
            try:
                return any(re.fullmatch(self.target_modules, name) for name in names)
            except re.error as error:
                raise ArgumentError(f"target_modules={self.target_modules!r} is no pattern: {error}") from None
        return ends(names, self.target_modules)

    def saves(self, names: Sequence[str]) -> bool:
        """True if one of these modules is trained as a whole; as in PEFT, "norm" also ends "input_layernorm"."""
        return any(name.endswith(tuple(self.modules_to_save)) for name in names)


def ends(names: Sequence[str], targets: Sequence[str]) -> bool:
    """True if one of the dotted names is one of the targets, or ends with it."""
    return any(f".{name}".endswith(f".{target}") for name in names for target in targets)


def _found(pattern: Pattern, names: Sequence[str]) -> Any:
    """Returns the value of the first key that PEFT would match with one of the names."""
    for key, value in pattern:
        if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            return value
    return None


def _names(name: str, value: Any) -> tuple[str, ...]:
    parts = () if value is None else value
    if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
        raise ArgumentError(f"{name}={value!r}, expected a list of names")
    return tuple(parts)


def _pairs(name: str, given: Any, check: Any) -> tuple[tuple[str, Any], ...]:
    try:
        pairs = tuple((given or {}).items() if isinstance(given or {}, Mapping) else ((key, own) for key, own in given))
        for key, value in pairs:
            re.compile(key)
            check(f"{name}[{key!r}]", value)
    except (TypeError, ValueError, re.error) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{name}={given!r}, expected values by regular expression") from None
    return pairs


def _check_rank(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}={value!r}, expected a rank of at least 1")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(f"{name}={value!r}, expected a number")
