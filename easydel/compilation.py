"""JAX's persistent compilation cache, in the user's cache directory unless JAX is configured otherwise."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import jax

MAX_BYTES = 4 << 30
MIN_SECONDS = 0.03  # fetching a program takes about a hundredth of a second


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs for the next process. Returns their directory; None if JAX's settings or the disk forbid.

    Compiled programs are code, so a directory that others may write to is not used.
    """
    settings: Any = jax.config  # its attributes are made when jax is imported
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return None
    directory = cache_home() / "easydel" / "xla"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there is no home, or it cannot be written
        return None
    if not _only_ours(directory):
        return None
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    compilation_cache.reset_cache()  # an earlier compilation has settled that there is no cache
    return directory


def cache_home() -> Path:
    """Returns the user's directory for reproducible files: https://specifications.freedesktop.org/basedir/."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home) if os.path.isabs(home) else Path.home() / ".cache"


def _only_ours(directory: Path) -> bool:
    if not os.access(directory, os.W_OK):
        return False
    if not hasattr(os, "getuid"):
        return True
    found = directory.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
