"""Languages of translation models: a token that stands before or after each text, and names its language."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer

from easydel.errors import ArgumentError


def language_token(backend: Any, language: str, source: str) -> str:
    """Returns the token of a language, which checkpoints spell "fra_Latn", "fr_XX" or "__fr__" (for "fr").

    Raises ArgumentError, with languages that are spelled alike, if there is no such token.
    """
    for token in (language, f"__{language}__"):
        if backend.token_to_id(token) is not None:
            return token
    added = getattr(backend, "get_added_tokens_decoder", dict)().values()
    names = [token.content.strip("_") for token in added if token.special]
    alike = difflib.get_close_matches(language, names, 5, 0.4)
    hint = f"did you mean {', '.join(alike)}?" if alike else None
    raise ArgumentError(f"there is no token for the language {language!r}", file=source or None, hint=hint)


def speaking(backend: Tokenizer, language: str, roles: Collection[str], source: str) -> Tokenizer:
    """Returns a tokenizer that puts the token of `language` where `backend` puts that of another one.

    `roles` are the other tokens that may stand around a text. Raises ArgumentError if no language stands there.
    """
    token = language_token(backend, language, source)
    processor = backend.post_processor
    template = {} if processor is None else json.loads(processor.__getstate__())
    around = template.get("special_tokens", {})
    languages = [name for name in around if name not in roles]
    if len(languages) != 1:
        raise ArgumentError(
            f"language {language!r} is given, but the tokenizer puts no language around a text", file=source or None
        )
    around[token] = {"id": token, "ids": [backend.token_to_id(token)], "tokens": [token]}
    for piece in template["single"] + template["pair"]:
        if piece.get("SpecialToken", {}).get("id") in languages:
            piece["SpecialToken"]["id"] = token
    other = copy.deepcopy(backend)
    changed = copy.deepcopy(processor)
    assert changed is not None
    changed.__setstate__(json.dumps(template).encode())
    other.post_processor = changed
    return other
