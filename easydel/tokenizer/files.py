"""Reads the small files beside a tokenizer: tokens with a role, added tokens, chat templates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from easydel.checkpoint.files import is_inside
from easydel.checkpoint.strict import parse_json
from easydel.errors import ConfigError
from easydel.hub.select import template_names

MAX_BYTES = 64 << 20
MAX_ITEMS = 500_000
MAX_TEMPLATE_BYTES = 4 << 20  # the longest have 50 KB
CONFIG = "tokenizer_config.json"
ADDED = "added_tokens.json"  # what older checkpoints have instead of the config's added_tokens_decoder
PROCESSOR_TEMPLATE = "chat_template.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
EXTRA = ("extra_special_tokens", "additional_special_tokens")  # special tokens without a role: the new and the old name


def read_config(folder: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json, with the entries that older checkpoints keep in special_tokens_map.json."""
    config = read_json(folder / CONFIG)
    # transformers' rule: a config that lists its added tokens is complete.
    return config if "added_tokens_decoder" in config else config | read_json(folder / "special_tokens_map.json")


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one if there is no such file."""
    if not os.path.lexists(file):
        return {}
    try:
        value, repeats = parse_json(read_bytes(file), MAX_ITEMS)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"is not readable as JSON: {error}", file=file) from error
    if not isinstance(value, dict):
        raise ConfigError(f"holds a {type(value).__name__} where a JSON object belongs", file=file)
    if twice := [repeat.key for repeat in repeats if not repeat.equal]:
        raise ConfigError(f"has keys twice, with different values: {', '.join(twice)[:200]}", file=file)
    return value


def read_bytes(file: Path, limit: int = MAX_BYTES) -> bytes:
    """Returns the contents of a file of up to `limit` bytes, which is no link, or one as in the Hub's cache."""
    if not file.is_file():
        raise ConfigError("is a dangling link, or not a regular file", file=file)
    if not is_inside(file.parent, file):
        raise ConfigError(f"is a link out of the directory, to {os.path.realpath(file)}", file=file)
    try:
        if (size := file.stat().st_size) > limit:
            raise ConfigError(f"has {size} bytes, more than {limit}", file=file)
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=file) from error


def roles(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Maps roles to tokens, such as {"eos_token": "</s>"}; some models have further roles, such as "image_token"."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and not isinstance(value, bool)}
    for key in EXTRA:
        if isinstance(config.get(key), dict):
            named |= config[key]
    return {key: _content(value, key, folder) for key, value in named.items() if value is not None}


def listed_ids(config: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Token -> id in added_tokens.json, in the order of the ids, where the config does not list the added tokens."""
    if "added_tokens_decoder" in config:
        return {}
    listed = read_json(folder / ADDED)
    if any(type(id) is not int for id in listed.values()):
        raise ConfigError("is not a table of tokens and their ids", file=folder / ADDED)
    return dict(sorted(listed.items(), key=itemgetter(1)))


def added_tokens(config: Mapping[str, Any], folder: Path) -> Iterator[AddedToken]:
    """Yields the config's tokens in the order of their ids, then those with a role: a tokenizer may lack some."""
    listed = config.get("added_tokens_decoder") or {}
    try:
        tokens = [token for _, token in sorted(listed.items(), key=lambda item: int(item[0]))]
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"has a broken added_tokens_decoder: {error}", file=folder / CONFIG) from error
    for token in tokens:
        content = _content(token, "added_tokens_decoder", folder)
        yield AddedToken(content, **{name: bool(token[name]) for name in FLAGS if name in token})
    extra = [token for key in EXTRA if isinstance(config.get(key), list) for token in config[key]]
    special = [*roles(config, folder).values(), *(_content(token, EXTRA[0], folder) for token in extra)]
    for token in listed_ids(config, folder):
        yield AddedToken(token, special=token in special, normalized=token not in special)
    yield from (AddedToken(token, special=True, normalized=False) for token in special)


def chat_templates(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Name -> template; the one and only is called "default". Files of their own outrank the config.

    Without either, the processor's template is used, which models that also see images have.
    """
    files = {Path(name).stem: folder / name for name in template_names(folder)}
    if os.path.lexists(folder / "chat_template.jinja"):
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: _template(file) for name, file in files.items()}
    source = CONFIG if config.get("chat_template") is not None else PROCESSOR_TEMPLATE
    value = (config if source == CONFIG else read_json(folder / PROCESSOR_TEMPLATE)).get("chat_template")
    try:
        if isinstance(value, list):
            value = {entry["name"]: entry["template"] for entry in value}
        templates = {"default": value} if isinstance(value, str) else dict(value or {})
        return {str(name): _text(template) for name, template in templates.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"has a broken chat_template: {error!r}", file=folder / source) from error


def _template(file: Path) -> str:
    try:
        return str(read_bytes(file, MAX_TEMPLATE_BYTES), "utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: {error.reason}", file=file) from error


def config_ids(folder: Path) -> dict[str, int]:
    """Returns bos, eos and pad ids of the model's config (the first of several): old tokenizers do not name theirs."""
    config = read_json(folder / "config.json")
    values = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    first = {key: value[0] if isinstance(value, list) and value else value for key, value in values.items()}
    return {key: value for key, value in first.items() if type(value) is int}


def _content(token: Any, role: str, folder: Path) -> str:
    """Returns the text of a token, which is written as a string, or as an object with a "content"."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise ConfigError(f"has a {role} that is no token: {token!r:.80}", file=folder / CONFIG)
    return content


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a template")
    return value
