"""A repository of the Hub: its listing, the files that are here already, and downloading the rest."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from easydel.errors import EasyDeLError, HubError, listed
from easydel.hub.attempts import ATTEMPTS, attempt, persist
from easydel.hub.explain import HubUnreachable, Transient, explaining
from easydel.hub.parallel import at_once, bar, go_on
from easydel.hub.select import is_template, needed, shard_names
from easydel.hub.verify import Digest, differs, discard, named

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """One revision of a repository, a folder in it, and the ways to access it."""

    id: str
    revision: str | None
    token: str | bool | None = field(repr=False)
    cache_dir: Path | None
    subfolder: str
    force_download: bool
    halted: Event = field(default_factory=Event, init=False, repr=False, compare=False)

    def needed(self, names: Collection[str], shards: Callable[[str], Collection[str]], *, weights: bool) -> list[str]:
        """Returns the repository's files that loading needs; `shards` reads the shard names of an index."""
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        inside = {name for name in inside if "/" not in name or is_template(name)}
        if prefix and not inside:
            raise HubError(f"has no folder {self.subfolder!r}", file=self.id)
        chosen = needed(inside, lambda index: shards(prefix + index), weights=weights, where=f"{self.id}/{prefix}"[:-1])
        return [prefix + name for name in chosen]


class Listing(NamedTuple):
    """The files of one commit, each with the hash that the Hub states, if it states one."""

    commit: str
    files: Mapping[str, Digest | None]


class Earlier(NamedTuple):
    """The folder of a commit that was downloaded before, and the names of the files in it that loading needs."""

    folder: Path
    names: list[str]


def obtain(repo: Repository, *, local_files_only: bool, weights: bool) -> Path:
    """Returns the local folder of the needed files: up to date if the Hub answers, else as downloaded before."""
    earlier = cached(repo, weights=weights)
    if local_files_only:
        return serve(repo, earlier, HubError("local_files_only forbids downloading"))
    spare = isinstance(earlier, Earlier) and not repo.force_download
    try:
        listing = persist(lambda: ask(repo), attempts=1 if spare else ATTEMPTS)
    except HubUnreachable as error:
        if repo.force_download:
            raise
        folder = serve(repo, earlier, error)
        _log.warning("%s: %s; using the files downloaded earlier, %s", repo.id, error.problem, folder)
        return folder
    return download(repo, listing, weights=weights)


def ask(repo: Repository) -> Listing:
    """Returns the Hub's current listing."""
    with attempt(repo.id, repo.revision):
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        api = HfApi(token=repo.token)
        info = api.model_info(repo.id, revision=repo.revision, files_metadata=True, timeout=timeout)
        if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
            raise Transient(f"the Hub names no commit, but {info.sha!r}", file=repo.id)
        files: dict[str, Digest | None] = {}
        for sibling in info.siblings or []:
            stated = Digest("sha1", sibling.blob_id) if sibling.blob_id else None
            files[sibling.rfilename] = Digest("sha256", sibling.lfs.sha256) if sibling.lfs else stated
    return Listing(str(info.sha), files)


def download(repo: Repository, listing: Listing, *, weights: bool) -> Path:
    """Downloads the needed files to the Hub's cache and returns their folder; files that are there cost nothing."""

    def shards(index: str) -> list[str]:
        return shard_names(bring(repo, listing, index))

    names = repo.needed(listing.files, shards, weights=weights)
    at_once(lambda name: bring(repo, listing, name), names, repo.halted)
    folder = _commit_folder(repo, listing.commit)
    _remember(repo.revision or constants.DEFAULT_REVISION, listing.commit, folder)
    return folder / repo.subfolder


def bring(repo: Repository, listing: Listing, name: str) -> Path:
    """Returns the file `name` with the hash that the Hub states: one that differs is removed and fetched once more."""
    found: list[Digest] = []
    stated = None
    while len(found) < 2:
        file = persist(lambda: _download(repo, listing.commit, name, again=bool(found)))
        stated = _stated(listing.files[name], file)
        if stated is None:
            _log.warning("%s: the Hub states no hash of %s, so only its size was compared", repo.id, name)
            return file
        wrong = differs(file, stated, _storage(file, name))
        if wrong is None:
            return file
        _log.warning("%s: %s has %s, not %s; removing it", repo.id, name, wrong, stated)
        discard(file)
        found.append(wrong)
    hint = "load it again over another connection, or report it to the repository"
    raise HubError(
        f"{name} is damaged, twice: it has {found[-1]}, but the Hub states {stated}", file=repo.id, hint=hint
    )


def cached(repo: Repository, *, weights: bool) -> Earlier | EasyDeLError:
    """Returns a complete earlier download, or the reason why there is none."""
    try:
        with explaining(repo.id, repo.revision):
            folder = _commit_folder(repo, repo.revision)
            names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
            return Earlier(folder, repo.needed(names, lambda index: shard_names(folder / index), weights=weights))
    except EasyDeLError as error:
        return error


def serve(repo: Repository, earlier: Earlier | EasyDeLError, reason: HubError) -> Path:
    """Returns the folder of `earlier`, checked; `reason` says why there cannot be a new download."""
    hint = reason.hint or "load it once without that"
    if isinstance(earlier, EasyDeLError):
        revision = "" if repo.revision is None else f" (revision {repo.revision!r})"
        problem = f"{reason.problem}, and the cache {repo.cache_dir or constants.HF_HUB_CACHE} does not hold all of it"
        raise type(reason)(f"{problem}{revision}: {earlier.problem}", file=repo.id, hint=hint) from earlier

    def damage(name: str) -> str | None:
        file = earlier.folder / name
        stated = named(file)
        wrong = stated and differs(file, stated, earlier.folder.parent.parent)
        return f"{name} has {wrong}, not {stated}" if wrong else None

    if damaged := [problem for problem in at_once(damage, earlier.names, repo.halted) if problem]:
        raise type(reason)(
            f"{reason.problem}, and the cache holds damaged files:{listed(damaged)}\n", file=repo.id, hint=hint
        )
    return earlier.folder / repo.subfolder


def _download(repo: Repository, commit: str, name: str, *, again: bool) -> Path:
    go_on(repo.halted)
    with attempt(repo.id, repo.revision):
        file = hf_hub_download(
            repo.id,
            name,
            revision=commit,
            token=repo.token,
            cache_dir=repo.cache_dir,
            force_download=repo.force_download or again,  # again: not from the store that repositories share
            tqdm_class=bar(repo.halted),
        )
    return Path(file)


def _stated(entry: Digest | None, file: Path) -> Digest | None:
    """Returns the hash that the Hub states of `file`; mirrors that list none still name its blob by it."""
    if entry is not None and entry.kind == "sha256":
        return entry
    name = named(file)
    return name if name is not None and name.kind == "sha256" else entry or name


def _storage(file: Path, name: str) -> Path:
    """Returns the repository's folder in the cache, which contains snapshots/<commit>/<name>."""
    return file.parents[name.count("/") + 2]


def _commit_folder(repo: Repository, revision: str | None) -> Path:
    """Returns the folder in which huggingface_hub keeps the files of `revision`, whether or not they are complete."""
    try:
        # It checks files that match a pattern; without one, every file of the repository would have to exist.
        folder = snapshot_download(
            repo.id, revision=revision, cache_dir=repo.cache_dir, local_files_only=True, allow_patterns=[]
        )
    except LocalEntryNotFoundError as error:
        raise HubError("nothing of it was downloaded", file=repo.id) from error
    return Path(folder)


def _remember(revision: str, commit: str, folder: Path) -> None:
    """Notes the commit of `revision`, as huggingface_hub does, but only once all of its files are here."""
    refs = folder.parent.parent / "refs"
    ref = Path(os.path.normpath(refs / revision))
    if revision == commit or not ref.is_relative_to(refs):
        return
    try:
        if not ref.is_file() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            new = folder.parent.parent / f".ref.{os.getpid()}"  # every file below refs/ counts as one
            new.write_text(commit)
            new.replace(ref)
    except OSError as error:
        _log.debug("%s cannot be written, and will not be found offline: %s", ref, error)
