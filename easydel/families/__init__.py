"""One short file per `model_type`: a function from a config to a model, and its table of checkpoint names."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from easydel.config import ROPE_KEYS, HFConfig, shown
from easydel.decoder import Decoder
from easydel.errors import ConfigError, EasyDeLError, UnsupportedModelError, listed
from easydel.weights.names import Names
from easydel.wrapper import Wrapper

FamilyFunction = Callable[[HFConfig], Any]
TextFunction = Callable[[HFConfig], dict[str, Any]]
_FAMILIES: dict[str, Family] = {}
_WRAPPERS: dict[str, Wrapper] = {}
# Keys that change the computation and that no family honours; the key_readers are refused the same way.
UNSUPPORTED = ("use_bidirectional_attention",)


@dataclass(frozen=True)
class Family:
    """How one model_type is read: `build` makes the record, `names` its checkpoint's table.

    `defaults` are the values of keys that a config may lack (transformers' own), `aliases` other spellings of a key.
    `inert` keys are in its files without a meaning, or mean what the family always does, though others read them.
    """

    model_type: str
    build: FamilyFunction
    names: Names | Callable[[HFConfig], Names]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    inert: tuple[str, ...] = ()
    encoder_decoder: bool = False

    def record(self, config: HFConfig) -> tuple[Decoder, Names]:
        """The model and table for `config` (made by `configured`); refuses what the config asks and we do not do."""
        try:
            record = self.build(config)
            names = self.names if isinstance(self.names, Names) else self.names(config)
        except EasyDeLError as error:
            if error.file is not None or config.file is None:
                raise
            found = "; ".join([error.problem, *self._culprits(config)])
            raise type(error)(found, file=config.file, hint=error.hint) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"no {self.model_type} has such values ({type(error).__name__}: {error})"
            hint = f"the values to look at: {', '.join(found)}" if (found := self._culprits(config)) else None
            raise ConfigError(problem, file=config.file, hint=hint) from error
        check_consumed(self.model_type, config, self.inert)
        return record, names

    def _culprits(self, config: HFConfig) -> list[str]:
        """The keys each of which, were it not in `config`, would leave one that can be built."""
        return [f"{key}={shown(value)}" for key, value in dict(config).items() if self._builds_without(key, config)]

    def _builds_without(self, key: str, config: HFConfig) -> bool:
        values = {other: value for other, value in dict(config).items() if other != key}
        try:
            self.build(self.configured(HFConfig(values, file=config.file)))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return False
        return True

    def configured(self, config: HFConfig, overrides: Mapping[str, Any] | None = None) -> HFConfig:
        return config.for_family(self.defaults, self.aliases, overrides or {})


def family(
    model_type: str,
    names: Names | Callable[[HFConfig], Names],
    *,
    defaults: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
    inert: tuple[str, ...] = (),
    encoder_decoder: bool = False,
) -> Callable[[FamilyFunction], FamilyFunction]:
    """Register the decorated function for `model_type`."""

    def register(function: FamilyFunction) -> FamilyFunction:
        key = f"{model_type}{' (encoder-decoder)' if encoder_decoder else ''}"
        assert key not in _FAMILIES, key
        _FAMILIES[key] = Family(model_type, function, names, defaults or {}, aliases or {}, inert, encoder_decoder)
        return function

    return register


def wrapper(model_type: str, *, ignored: tuple[str, ...]) -> Callable[[TextFunction], TextFunction]:
    """Register the decorated function, which finds the language model's config in that of a multimodal `model_type`."""

    def register(function: TextFunction) -> TextFunction:
        assert model_type not in _WRAPPERS, model_type
        _WRAPPERS[model_type] = Wrapper(model_type, function, ignored)
        return function

    return register


def find_wrapper(model_type: object) -> Wrapper | None:
    """How to read the language model of that multimodal model_type, if it is one that we know."""
    _import_module_of(model_type)
    return _WRAPPERS.get(str(model_type))


def find_family(model_type: str, *, encoder_decoder: bool = False) -> Family:
    """The family of that model_type; UnsupportedModelError lists those that exist.

    A type that only has an encoder-decoder form is found in either case.
    """
    whole = f"{model_type} (encoder-decoder)"
    key = whole if encoder_decoder else str(model_type)
    if key not in _FAMILIES:
        _import_module_of(model_type)
    if key not in _FAMILIES:
        all_families()
    if key not in _FAMILIES and whole in _FAMILIES:
        return _FAMILIES[whole]
    if key not in _FAMILIES and model_type in _FAMILIES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is no encoder-decoder", hint="load it with AutoEasyDeLModelForCausalLM"
        )
    if key not in _FAMILIES:
        raise UnsupportedModelError(
            f"model_type {shown(model_type)} is not implemented",
            hint=f"known: {', '.join(sorted({*_FAMILIES, *_WRAPPERS}))}",
        )
    return _FAMILIES[key]


def all_families() -> dict[str, Family]:
    """Every family by model_type."""
    for module in _modules():
        importlib.import_module(f"{__name__}.{module}")
    return dict(sorted(_FAMILIES.items()))


def all_wrappers() -> dict[str, Wrapper]:
    """Every multimodal model_type whose language model can be loaded, if there is a family for that."""
    all_families()
    return dict(sorted(_WRAPPERS.items()))


def _import_module_of(model_type: object) -> None:
    """The file named after it, if there is one, registers what it has."""
    module = re.sub(r"\W", "_", str(model_type))
    if module in _modules():
        importlib.import_module(f"{__name__}.{module}")


@cache
def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def check_consumed(model_type: str, config: HFConfig, inert: tuple[str, ...] = ()) -> None:
    """Refuse keys with an effect that other families read and this one did not; warn of keys that nobody reads."""
    unread = {key: value for key, value in config.unread().items() if key not in inert}
    if not unread:
        return
    readers = {key: {"no model here"} for key in UNSUPPORTED} | key_readers()
    refused = [
        f"{key}={value!r} (honoured by {', '.join(sorted(readers[name])[:4])})"
        for key, value in unread.items()
        if (name := key.rsplit(".", 1)[-1]) in readers
    ]
    if refused:
        raise UnsupportedModelError(
            f"the config asks {model_type} for what it does not do:{listed(refused)}",
            file=config.file,
            hint="remove the keys if they have no effect (config_kwargs={key: None})",
        )
    import warnings

    warnings.warn(f"{config.file or 'config'}: no model here knows {', '.join(sorted(unread))}; ignored", stacklevel=2)


def key_readers() -> dict[str, set[str]]:
    """Config key -> the family files that read it, found in their source: `c.key` and `c.get("key")`."""
    readers = {key: {"rotary models"} for key in ROPE_KEYS}
    for key in _keys_read(Path(__file__).parents[1] / "decoder.py"):
        readers.setdefault(key, set()).add("every model")
    for module in _modules():
        for key in _keys_read(Path(__file__).parent / f"{module}.py"):
            readers.setdefault(key, set()).add(module)
    return readers


def _keys_read(file: Path) -> set[str]:
    return {one or other for one, other in re.findall(r"\bc\.(?:get\(\s*\"(\w+)\"|([a-z]\w*))", file.read_text())}
