"""Tokenizers without a tokenizer.json (vocab.txt, SentencePiece models, ...), read by transformers, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from easydel.errors import ArgumentError, ConfigError, EasyDeLError, UnsupportedModelError
from easydel.hub.select import CONFIGS, VOCABULARIES
from easydel.tokenizer.files import chat_templates, config_ids, read_bytes, read_config, read_json
from easydel.tokenizer.languages import language_token
from easydel.tokenizer.text import Tokenizer

MAX_VOCABULARY_BYTES = 256 << 20
INSTALL = 'pip install ".[tokenizers]"'


def from_transformers(folder: Path, src_lang: str | None = None, tgt_lang: str | None = None) -> Tokenizer:
    """Returns the tokenizer in `folder`, whatever its format, if transformers has a class that reads it.

    The languages are for those that transformers reads in Python.
    """
    present = {file.name for file in folder.iterdir()}
    if not present & VOCABULARIES:
        there = ", ".join(sorted(present)[:20]) or "nothing"
        raise ConfigError(f"has no tokenizer; it holds {there}", file=folder, hint="expected a tokenizer.json")
    for name in sorted(present & (VOCABULARIES | CONFIGS)):
        read_bytes(folder / name, MAX_VOCABULARY_BYTES)  # refuses links and pipes, which transformers would open
    config = read_config(folder)
    try:
        reader = _reader(config, read_json(folder / "config.json"), folder)
        # Only these files are used: no network, and no code that came with them.
        own = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        slow = None if own.is_fast else _speaking(own, folder, src_lang, tgt_lang)
    except ImportError as error:
        raise ConfigError(f"has no tokenizer.json, and to read others: {error}", file=folder, hint=INSTALL) from error
    except EasyDeLError:
        raise
    except Exception as error:  # of many kinds: each format has a library of its own
        raise ConfigError(f"transformers cannot read the tokenizer: {error}", file=folder) from error
    return Tokenizer(
        slow or own.backend_tokenizer,
        special_tokens=own.special_tokens_map,
        default_ids=config_ids(folder),
        templates=chat_templates(config, folder),
        cleans=own.clean_up_tokenization_spaces,
        source=str(folder),
        target=None if slow is None or getattr(own, "tgt_lang", "") is None else replace(slow, targets=True),
    )


@dataclass(frozen=True)
class Slow:
    """Adapts one of transformers' Python tokenizers to the interface of the tokenizers library.

    With `targets` it reads what an encoder-decoder shall write.
    """

    own: Any
    targets: bool = False

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Ids:
        read = {"text_target" if self.targets else "text": sequence}
        return Ids(self.own(**read, add_special_tokens=add_special_tokens)["input_ids"])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.own.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def token_to_id(self, token: str) -> int | None:
        id = self.own.convert_tokens_to_ids(token)
        return None if id == self.own.unk_token_id and token != self.own.unk_token else id


@dataclass(frozen=True)
class Ids:
    ids: list[int]


def _speaking(own: Any, folder: Path, src_lang: str | None, tgt_lang: str | None) -> Slow:
    """Returns the tokenizer for texts in these languages."""
    slow = Slow(own)
    for name, language in (("src_lang", src_lang), ("tgt_lang", tgt_lang)):
        if language is None:
            continue
        if not hasattr(own, "src_lang"):
            raise ArgumentError(f"{name}={language!r}, but {type(own).__name__} has no languages", file=folder)
        language_token(slow, language, str(folder))
        setattr(own, name, language)
    return slow


def _reader(config: Mapping[str, Any], model: Mapping[str, Any], folder: Path) -> Any:
    """Returns the class that the config names, or that belongs to its model type.

    `AutoTokenizer` is not used: it imports the models' configs, and they import torch if it is installed.
    """
    import transformers

    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    kind = model.get("model_type")
    if named is None and isinstance(kind, str) and re.fullmatch(r"\w+", kind):
        try:
            names = import_module(f"transformers.models.{kind}.tokenization_{kind}").__all__
            named = next(name for name in names if name.endswith("Tokenizer"))
        except (ModuleNotFoundError, StopIteration):
            named = None
    if named is None:
        hint = 'add "tokenizer_class" to tokenizer_config.json'
        raise ConfigError(
            f"does not say which tokenizer it has, nor does its model type {kind!r}", file=folder, hint=hint
        )
    named = str(named).removesuffix("Fast")
    generic = named in ("PreTrainedTokenizer", "TokenizersBackend")
    reader = getattr(transformers, "TokenizersBackend" if generic else named, None)
    if not generic and (reader is None or not named.endswith("Tokenizer")):
        raise UnsupportedModelError(f"has a tokenizer {named!r}, which transformers does not have", file=folder)
    return reader
