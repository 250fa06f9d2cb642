"""One short file per `model_type`: a function from a config to a model, and its table of checkpoint names."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ConfigError, EasyDeLError, UnsupportedModelError, listed
from easydel.expected import shown
from easydel.families._refused import REFUSED
from easydel.families.multimodal import WRAPPERS
from easydel.keys import Keys, effect
from easydel.multimodal import Wrapper
from easydel.rope_settings import FALLBACKS, FORMS
from easydel.weights.names import Names

FamilyFunction = Callable[[HFConfig], Any]
_FAMILIES: dict[tuple[str, bool], Family] = {}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """One model_type: `build` makes the record from a config, `names` is the table of its checkpoints' names.

    Defaults and other spellings of keys are those of transformers' class (`keys.Keys`), changed by `defaults` and
    `aliases`. `inert` keys have no effect in this family: each with the reason. `peft_lacks` are modules whose adapters
    PEFT does not load.
    """

    model_type: str
    build: FamilyFunction
    names: Names | Callable[[HFConfig], Names]
    encoder_decoder: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)
    peft_lacks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model_type}{' (encoder-decoder)' if self.encoder_decoder else ''}"

    @cached_property
    def declared(self) -> Keys:
        theirs = Keys.of(self.model_type)
        defaults, aliases = {**theirs.defaults, **self.defaults}, {**theirs.aliases, **self.aliases}
        return replace(theirs, defaults=defaults, aliases=aliases)

    def knows(self, key: str) -> bool:
        """True if `key` may be added to a config: it is declared, or means the same everywhere."""
        declared = self.declared
        known = {*declared.defaults, *declared.aliases, *declared.nested, *self.aliases.values(), *self.inert}
        return key in known or key in (*FORMS, *FALLBACKS) or effect(key) is not None

    def record(self, config: HFConfig) -> tuple[Decoder, Names]:
        """Returns the model's record and table for `config` (made by `configured`). Refuses settings without code."""
        try:
            record = self.build(config)
            names = self.names_for(config)
        except EasyDeLError as error:
            if error.file is not None or config.file is None:
                raise
            found = "; ".join([error.problem, *self._culprits(config)])
            raise type(error)(found, file=config.file, hint=error.hint) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"no {self.model_type} has such values ({type(error).__name__}: {error})"
            hint = f"the values to look at: {', '.join(found)}" if (found := self._culprits(config)) else None
            raise ConfigError(problem, file=config.file, hint=hint) from error
        self._check_consumed(config)
        return record, names

    def names_for(self, config: HFConfig) -> Names:
        """Returns the table for `config` (made by `configured`)."""
        return self.names if isinstance(self.names, Names) else self.names(config)

    def _check_consumed(self, config: HFConfig) -> None:
        """Refuses unread keys with an effect; warns of unread keys whose effect is unknown."""
        unread = [found for found in config.unread() if found[0] not in self.inert]
        if refused := [f"{key}={shown(value)} ({problem})" for key, value, problem in unread if problem is not None]:
            raise UnsupportedModelError(
                f"the config has settings that {self.model_type} does not implement:{listed(refused)}",
                file=config.file,
                hint="remove the keys if they have no effect (config_kwargs={key: None})",
            )
        if unread:
            names = ", ".join(sorted(key for key, _, _ in unread))
            logger.warning(
                "%s: keys that are not known for %s: %s; ignored", config.file or "config", self.model_type, names
            )

    def _culprits(self, config: HFConfig) -> list[str]:
        """Returns the keys whose removal from `config` would each make the model buildable."""
        return [f"{key}={shown(value)}" for key, value in dict(config).items() if self._builds_without(key, config)]

    def _builds_without(self, key: str, config: HFConfig) -> bool:
        values = {other: value for other, value in dict(config).items() if other != key}
        try:
            self.build(self.configured(HFConfig(values, file=config.file)))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return False
        return True

    def configured(self, config: HFConfig, overrides: Mapping[str, Any] | None = None) -> HFConfig:
        return config.for_family(self.declared, overrides or {})


def family(
    model_type: str, names: Names | Callable[[HFConfig], Names], *, encoder_decoder: bool = False, **fields: Any
) -> Callable[[FamilyFunction], FamilyFunction]:
    """Registers the decorated function for `model_type`; `fields` are further fields of `Family`."""

    def register(function: FamilyFunction) -> FamilyFunction:
        key = (model_type, encoder_decoder)
        assert key not in _FAMILIES, key
        _FAMILIES[key] = Family(model_type, function, names, encoder_decoder, **fields)
        return function

    return register


def find_wrapper(model_type: object) -> Wrapper | None:
    """Returns the multimodal model_type of that name, if it is known."""
    return WRAPPERS.get(str(model_type))


def find_family(model_type: str, *, encoder_decoder: bool = False) -> Family:
    """Returns the family of that model_type. Raises UnsupportedModelError, which lists the known ones.

    A type that only has an encoder-decoder form is found in either case.
    """
    key, decoder, whole = ((str(model_type), kind) for kind in (encoder_decoder, False, True))
    if key not in _FAMILIES:
        _import_module_of(model_type)
    if key not in _FAMILIES:
        all_families()
    if key not in _FAMILIES and whole in _FAMILIES:
        return _FAMILIES[whole]
    if key not in _FAMILIES and decoder in _FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is no encoder-decoder", hint="load it with AutoEasyDeLModelForCausalLM"
        )
    if key not in _FAMILIES and key[0] in REFUSED:
        raise UnsupportedModelError(f"model_type {key[0]!r} {REFUSED[key[0]]}")
    if key not in _FAMILIES:
        known = sorted({*(family.name for family in _FAMILIES.values()), *WRAPPERS})
        raise UnsupportedModelError(
            f"model_type {shown(model_type)} is not implemented", hint=f"known: {', '.join(known)}"
        )
    return _FAMILIES[key]


def all_families() -> list[Family]:
    """Returns every family, sorted by name."""
    for module in _modules():
        importlib.import_module(f"{__name__}.{module}")
    return sorted(_FAMILIES.values(), key=lambda family: family.name)


def all_wrappers() -> Mapping[str, Wrapper]:
    """Returns every multimodal model_type whose language model can be loaded, if there is a family for that."""
    return WRAPPERS


def _import_module_of(model_type: object) -> None:
    """Imports the file named after the type, if there is one; that registers its families."""
    module = re.sub(r"\W", "_", str(model_type))
    if module in _modules():
        importlib.import_module(f"{__name__}.{module}")


@cache
def _modules() -> list[str]:
    """Returns the files of families; files that several of them share begin with an underscore."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
