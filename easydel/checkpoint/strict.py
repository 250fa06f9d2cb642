"""Strict JSON for untrusted files: bounds its size in memory before parsing, and reports repeated keys."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

_COSTLY = (b"{", b"[", b",")  # each makes an object, or a place for one, of up to 200 bytes


class Repeat(NamedTuple):
    """A `key` that occurs twice in the object `inside`, with equal values or not."""

    inside: dict[str, Any]
    key: str
    equal: bool


def parse_json(text: bytes, limit: int) -> tuple[Any, list[Repeat]]:
    """Returns the value of UTF-8 `text` with at most `limit` objects, lists and items, and its repeated keys.

    Raises ValueError, also for deep nesting and for long numbers.
    """
    if (count := sum(map(text.count, _COSTLY))) > limit:
        raise ValueError(f"it has {count} objects and items, more than {limit}")
    repeats: list[Repeat] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            seen: dict[str, Any] = {}
            for key, value in pairs:
                if key in seen:
                    repeats.append(Repeat(entries, key, seen[key] == value))
                seen.setdefault(key, value)
        return entries

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=collect), repeats
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
