"""A Hugging Face config.json, read key by key, with a record of the keys that were read.

Other implementations break silently in two places: at a key that changes the computation and is never read, and at the
two forms of the rotary settings (`rope_theta` and `rope_scaling` at top level until 2025, one `rope_parameters` since).
Here an unread key is an error (`Family.record`), and one place normalises the two forms (`HFConfig.rope`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from easydel.checkpoint.strict import parse_json
from easydel.errors import ConfigError, UnsupportedModelError, listed
from easydel.expected import LAYERS, POSITIVE, SIZE, expectation, is_whole, shown
from easydel.keys import Keys, is_inert
from easydel.rope_settings import FORMS, TOP, is_setting, merged, problems, with_overrides

MAX_CONFIG_BYTES = 8 << 20
MAX_CONFIG_ITEMS = 500_000  # some configs list a name for each of 100,000 labels
NOTHING = Keys()


class HFConfig:
    """The keys of a config.json as attributes; remembers which were read.

    `declared` has the values of keys that the file lacks, and other spellings of keys ("hidden_size": "n_embd").
    Reading a key that neither has is a `ConfigError`; `get` takes a default. Nested dicts are again HFConfigs.
    """

    def __init__(
        self, values: Mapping[str, Any], *, file: Path | None = None, declared: Keys = NOTHING, path: str = ""
    ):
        self._values = {str(key): value for key, value in values.items()}  # as JSON has them: id2label counts
        self._file = file
        self._declared = declared
        self._path = path
        self._read: set[str] = set()
        self._nested: dict[str, HFConfig] = {}

    @classmethod
    def from_file(cls, file: Path) -> HFConfig:
        """Reads `file`. Raises ConfigError for a file that is missing, too large, or no JSON object."""
        try:
            if not file.exists():
                raise ConfigError("no such file", file=file, hint="a model directory needs a config.json")
            if not file.is_file():
                raise ConfigError("is not a regular file", file=file)
            if file.stat().st_size > MAX_CONFIG_BYTES:
                raise ConfigError(f"{file.stat().st_size} bytes is too large for a config", file=file)
            values, repeats = parse_json(file.read_bytes(), MAX_CONFIG_ITEMS)
        except ConfigError:
            raise
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror or error}", file=file) from None
        except ValueError as error:
            raise ConfigError(f"not valid JSON ({error})", file=file) from None
        if twice := [shown(repeat.key) for repeat in repeats if not repeat.equal]:
            raise ConfigError(f"has keys twice, with different values: {', '.join(twice[:8])}", file=file)
        if not isinstance(values, dict):
            raise ConfigError(f"holds a {type(values).__name__}, expected an object", file=file)
        return cls(values, file=file)

    def for_family(self, declared: Keys, overrides: Mapping[str, Any]) -> HFConfig:
        """Returns the same config with a family's declared keys, `overrides` on top, and nothing read yet.

        An override of a rotary setting also changes `rope_parameters`, which would hide it. ArgumentError if it cannot.
        """
        others = {name for key in overrides for name in declared.spellings(key)}
        values = {key: value for key, value in self._values.items() if key not in others} | dict(overrides)
        return HFConfig(with_overrides(values, declared, overrides), file=self._file, declared=declared)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        found, value = self._find(key)
        if not found:
            name = f"{self._path}{key}"
            raise ConfigError(
                f"key {name!r} is missing", file=self._file, hint="pass it in config_kwargs or mend the file"
            )
        if value is None and POSITIVE.fullmatch(key):
            raise ConfigError(f"{self._path}{key} is null, expected a whole number", file=self._file)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        found, value = self._find(key)
        return value if found and value is not None else default

    def only(self, key: str, *known: Any, default: Any = None) -> Any:
        """Returns the value of `key`, one of `known` (by default the first): there is no code for other values."""
        value = self.get(key, known[0] if default is None else default)
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in known):
            problem = f"{self._path}{key} is {shown(value)}, known: {', '.join(map(repr, known))}"
            raise UnsupportedModelError(problem, file=self._file)
        return value

    def by_layer(self, key: str, layers: int) -> list[Any]:
        """The value of `key` for each of `layers`: a list has one for each, anything else is for all."""
        spellings = self._declared.spellings(key)
        stated = next((value for name in spellings if isinstance(value := self._values.get(name), list)), None)
        if stated is None:
            return [getattr(self, key)] * layers
        self._read.update(spellings)
        if len(stated) != layers:
            raise ConfigError(f"{len(stated)} {self._path}{key} for {layers} layers", file=self._file)
        return [self._checked(key, value) for value in stated]

    def inside(self, key: str) -> HFConfig:
        """Returns the config at `key`; an empty one if there is none."""
        found = self.get(key)
        if found is not None and not isinstance(found, HFConfig):
            raise ConfigError(f"{self._path}{key} is {shown(found)}, expected an object", file=self._file)
        return self._nest(key, {}) if found is None else found

    def _find(self, key: str) -> tuple[bool, Any]:
        spellings = self._declared.spellings(key)
        self._read.update(spellings)
        for name in spellings:
            if name in self._values:
                return True, self._checked(name, self._values[name])
        own = spellings[-1]
        return own in self._declared.defaults, self._declared.defaults.get(own)

    def _checked(self, key: str, value: Any) -> Any:
        default = self._declared.defaults.get(self._declared.spellings(key)[-1])
        if value is not None and (expected := expectation(key, value, default)):
            raise ConfigError(f"{self._path}{key} is {shown(value)}, expected {expected}", file=self._file)
        return self._nest(key, value) if isinstance(value, dict) else value

    def _nest(self, key: str, value: Mapping[str, Any]) -> HFConfig:
        inner = HFConfig(value, file=self._file, declared=self._declared.inside(key), path=f"{self._path}{key}.")
        return self._nested.setdefault(key, inner)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    @property
    def file(self) -> Path | None:
        return self._file

    def __repr__(self) -> str:
        return f"HFConfig({self._values!r})"

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(self._values))

    @property
    def declared(self) -> Keys:
        return self._declared

    def unread(self) -> Iterator[tuple[str, Any, str | None]]:
        """Yields unread keys that may have an effect: (key, value, reason why a model without them cannot honour it).

        The reason is None if it is not known whether the key has an effect. Keys known to be inert are left out.
        """
        for key, value in self._values.items():
            if key in self._nested:
                yield from self._nested[key].unread()
            elif key not in self._read:
                problem = self._declared.refusal(key, value)
                if problem is not None or self._declared.unknown(key, value):
                    yield f"{self._path}{key}", value, problem

    def mark_read(self) -> None:
        """Marks all keys as read: another family reads this config as its own, and checks it."""
        self._read.update(self._values)

    def sizes(self) -> Iterator[tuple[str, int, bool]]:
        """Yields (key, value, whether it counts layers) of each size that the file or an override states."""
        for key, value in self._values.items():
            if isinstance(value, dict):
                if not is_inert(key):
                    yield from HFConfig(value, path=f"{self._path}{key}.").sizes()
            elif is_whole(value) and (SIZE.fullmatch(key) or LAYERS.fullmatch(key)):
                yield f"{self._path}{key}", value, LAYERS.fullmatch(key) is not None

    def read_rope(self) -> None:
        """Marks the known rotary settings as read: the rope refuses those that a model does not honour."""
        self._read.update(key for key in self if is_setting(key))
        for key, value in self._values.items():
            if isinstance(value, dict):
                self.inside(key).read_rope()

    def rope(self, layer_type: str | None = None) -> dict[str, Any]:
        """Returns rotary settings as one flat dict, from either form: `rope_type`, `rope_theta`, and the type's own.

        `layer_type` picks an entry where they are nested by layer type.
        """
        found = next((found for form in FORMS if (found := self.get(form))), {})
        if not isinstance(found, HFConfig | dict):
            raise ConfigError(f"{' or '.join(FORMS)} is {shown(found)}, expected an object", file=self._file)
        if isinstance(found, HFConfig):
            found.read_rope()
        settings = merged(dict(found), {key: self.get(key) for key in TOP}, self._declared, layer_type)
        if wrong := problems(settings):
            raise ConfigError(f"its rotary settings make no sense:{listed(wrong)}", file=self._file)
        return settings
