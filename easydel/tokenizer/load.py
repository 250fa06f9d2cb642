"""From a checkpoint's tokenizer files to a `Tokenizer`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers.models import BPE

from easydel.checkpoint import find_checkpoint, open_checkpoint
from easydel.errors import ConfigError
from easydel.hub import fetch
from easydel.hub.adapters import base_of, has_tokenizer, is_adapter
from easydel.hub.select import ADAPTER_CONFIG, CONFIGS, VOCABULARIES, template_names
from easydel.tokenizer.files import ADDED, added_tokens, chat_templates, config_ids, listed_ids, read_config, roles
from easydel.tokenizer.guard import read_tokenizer
from easydel.tokenizer.text import Tokenizer


def load_tokenizer(
    name_or_path: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    force_download: bool = False,
    follow_links: bool = False,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
) -> Tokenizer:
    """Returns the tokenizer of a Hub id, a directory, or a GGUF file. A directory's tokenizer.json takes precedence.

    With `follow_links` a local directory's files may be links that lead out of it. Adapters without a tokenizer have
    that of the model that they were made for. Other formats are read by transformers. Code in a checkpoint is never
    run. Translation models name the language of each text: `src_lang` is that of inputs, `tgt_lang` that of targets,
    as the checkpoint spells them ("eng_Latn"). Raises `ConfigError` for files that are broken or absent,
    `ArgumentError` for languages that it does not know.
    """
    path = fetch(
        name_or_path,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        subfolder=subfolder,
        local_files_only=local_files_only,
        force_download=force_download,
        weights=False,
    )
    languages: dict[str, Any] = {"src_lang": src_lang, "tgt_lang": tgt_lang}
    if follow_links and any((path / name).is_symlink() for name in (*CONFIGS, *VOCABULARIES)):
        with TemporaryDirectory() as copies:
            return load_tokenizer(_copied(path, Path(copies)), **languages)
    if is_adapter(path) and not has_tokenizer(path):
        base, own = base_of(path), {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return load_tokenizer(base.name, revision=base.revision, **own, **languages)
    folder = path if path.is_dir() else path.parent
    if (files := gguf_tokenizer_files(path, follow_links=follow_links)) is not None:
        found = from_gguf(files)
    elif os.path.lexists(folder / "tokenizer.json"):
        found = from_json(folder)
    else:
        from easydel.tokenizer.other import from_transformers

        found = from_transformers(folder, **languages)
    return found.between(**languages)


def gguf_tokenizer_files(path: Path, *, follow_links: bool = False) -> list[Path] | None:
    """The GGUF file, or the parts of one, with the tokenizer of the model at `path`; None if it has other files."""
    if path.is_file():
        return find_checkpoint(path) if path.suffix == ".gguf" else None
    if not any(path.glob("*.gguf")) or any(os.path.lexists(path / name) for name in VOCABULARIES):
        return None
    files = find_checkpoint(path, follow_links=follow_links)
    return files if files[0].suffix == ".gguf" else None


def _copied(folder: Path, copies: Path) -> Path:
    """Returns a folder with copies of a tokenizer's files, wherever links lead."""
    for name in (*CONFIGS, *VOCABULARIES, ADAPTER_CONFIG, *template_names(folder)):
        if (folder / name).is_file():
            (copies / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, copies / name)
    return copies


def from_gguf(files: Sequence[Path]) -> Tokenizer:
    """The tokenizer and the template in the metadata of a GGUF file, or of the parts of one."""
    from easydel.weights.gguf import chat_templates as gguf_templates, special_tokens, tokenizer_json

    metadata = open_checkpoint(files).metadata
    return Tokenizer(
        tokenizer_json(metadata, files[0]),
        special_tokens=special_tokens(metadata, files[0]),
        templates=gguf_templates(metadata),
        source=str(files[0]),
    )


def from_json(folder: Path) -> Tokenizer:
    """Returns the tokenizer that tokenizer.json describes, with the roles and templates of the files beside it."""
    backend = read_tokenizer(folder / "tokenizer.json")
    backend.no_truncation()  # some files hold the settings of the last training run
    backend.no_padding()
    config = read_config(folder)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    new = [token for token in added_tokens(config, folder) if token.content not in known]
    for special, tokens in groupby(new, key=attrgetter("special")):  # in order, in few calls: each call costs time
        (backend.add_special_tokens if special else backend.add_tokens)(list(tokens))
    for token, id in listed_ids(config, folder).items():
        if (found := backend.token_to_id(token)) != id:
            problem = f"gives {token!r:.80} the id {id}, but tokenizer.json and what comes before it make that {found}"
            raise ConfigError(problem, file=folder / ADDED)
    return Tokenizer(
        backend,
        special_tokens=roles(config, folder),
        default_ids=config_ids(folder),
        templates=chat_templates(config, folder),
        # As in transformers: cleaning is meant for WordPiece, and would harm byte-level text.
        cleans=bool(config.get("clean_up_tokenization_spaces")) and not isinstance(backend.model, BPE),
        source=str(folder),
    )
