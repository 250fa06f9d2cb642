"""Regular expressions out of a checkpoint's settings, of which only such are used as cannot take long to match."""

from __future__ import annotations

import re
from collections.abc import Collection

from easydel.errors import ConfigError
from easydel.weights.formats.unpacking import Unpacking

MAX_PATTERN = 500
MAX_STEPS = 10**8  # each repeat may try every place in a name, for every place that those before it have tried


def simple_pattern(text: str, it: Unpacking) -> re.Pattern[str]:
    """Compiles a pattern for names of modules. ConfigError if it is none, or if matching it could take long."""
    repeats = len(re.findall(r"(?<!\\)[*+{]", text))
    nested = re.search(r"\)[*+{]", text)
    if len(text) <= MAX_PATTERN and not nested and _longest(it.tensors) ** repeats <= MAX_STEPS:
        try:
            return re.compile(text)
        except (re.error, RecursionError, OverflowError):
            pass
    problem = f"quantization_config has settings for modules {text[:100]!r}, which is not a simple regular expression"
    raise ConfigError(problem, file=it.config)


def _longest(names: Collection[str]) -> int:
    return max(map(len, names), default=0)
