"""From a name or path to local files: only those that loading needs, from the Hub or its cache on this machine.

Code is never downloaded, and pickles only where a repository has no safetensors.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from easydel.errors import ArgumentError
from easydel.hub.local import existing, exists, named, refuse_path

if TYPE_CHECKING:
    from easydel.hub.remote import Repository
    from easydel.hub.streamed import Streamed

__all__ = ["fetch", "stream"]


def fetch(
    name_or_path: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    force_download: bool = False,
    weights: bool = True,
) -> Path:
    """Returns the local directory, or single file, that holds the config, tokenizer and weights of `name_or_path`.

    An existing local path is returned unchanged. Anything else is a Hub id, whose files are downloaded to the Hub's
    cache; if the Hub cannot be reached, or `local_files_only`, a complete earlier download is used. Each file is
    compared once with the hash that the Hub states. With `weights` False no weights are downloaded, unless the only
    config is inside a GGUF file. The other arguments are those of `huggingface_hub`. Raises `HubError` with a hint.
    """
    path = named(name_or_path)
    if exists(path):
        return existing(path, subfolder)
    if force_download and local_files_only:
        raise ArgumentError("force_download and local_files_only exclude each other")
    repo = _repository(name_or_path, revision, token, cache_dir, subfolder, force_download)
    from easydel.hub.remote import obtain  # huggingface_hub takes a third of a second to import

    return obtain(repo, local_files_only=local_files_only, weights=weights)


def stream(
    name_or_path: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    force_download: bool = False,
    headers_only: bool = False,
) -> Path | Streamed:
    """Fetches as `fetch` does, but leaves safetensors weights on the Hub, to be read by ranges.

    With `headers_only`, for those who read no weights, GGUF files stay there too.
    """
    path = named(name_or_path)
    if exists(path):
        return existing(path, subfolder)
    if local_files_only:
        raise ArgumentError("stream and local_files_only exclude each other")
    repo = _repository(name_or_path, revision, token, cache_dir, subfolder, force_download)
    from easydel.hub.streamed import open_stream

    return open_stream(repo, headers_only=headers_only)


def _repository(
    name_or_path: str | PathLike[str],
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | PathLike[str] | None,
    subfolder: str,
    force_download: bool,
) -> Repository:
    if isinstance(token, str) and not re.fullmatch(r"[!-~]*", token):
        # The HTTP client would refuse it too, and quote it.
        raise ArgumentError("token holds something else than letters, digits and signs", hint="is there a line break?")
    refuse_path(name_or_path)
    from easydel.hub.remote import Repository

    return Repository(
        id=fspath(name_or_path),
        revision=revision,
        token=None if token == "" else token,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        subfolder=subfolder.strip("/"),
        force_download=force_download,
    )
