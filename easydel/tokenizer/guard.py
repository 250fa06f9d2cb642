"""Guards the tokenizers library: its failures on broken files become errors that name the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from easydel.errors import ConfigError, EasyDeLError
from easydel.tokenizer.files import read_bytes

MAX_TOKENIZER_BYTES = 256 << 20  # the file for 262,144 tokens and their merges has 33 MB

# The key with a prefix that is not empty, or any lower-case letter or underscore escaped, which no JSON writer does.
_MAY_HAVE_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]|\\u00(?:5[fF]|[67])')


def read_tokenizer(file: Path) -> Tokenizer:
    """Returns the tokenizer in a tokenizer.json."""
    with guarded("is not a tokenizer", file):
        text = read_bytes(file, MAX_TOKENIZER_BYTES)
        if _MAY_HAVE_PREFIX.search(text):
            _check_merges(json.loads(text)["model"], file)
        return Tokenizer.from_buffer(text)


@contextmanager
def guarded(problem: str, file: str | Path | None) -> Iterator[None]:
    """Raises any failure of the library as a `ConfigError` about `file`."""
    try:
        yield
    except EasyDeLError:
        raise
    except Exception as error:  # it raises nothing more specific
        raise ConfigError(f"{problem}: {error}", file=file) from error
    except BaseException as error:  # its panics are no Exception, and their class cannot be imported
        if type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{problem}: {error}", file=file) from error


def _check_merges(model: dict[str, Any], file: Path) -> None:
    """Refuses merges without the prefix of word parts: tokenizers 0.23 cuts it off unchecked, and may then abort."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or []:
        _, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not second.startswith(prefix):
            raise ConfigError(f"has a merge {merge!r:.80} whose second part lacks the prefix {prefix!r:.20}", file=file)
