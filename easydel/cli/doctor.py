"""`easydel doctor`: what is installed and found on this machine, with advice."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from easydel.cli.options import Json
from easydel.cli.tables import print_table, size

REQUIRED = ("easydel", "jax", "jaxlib", "flax", "numpy", "tokenizers", "huggingface_hub", "gguf")
# packages that only some things need: what for, and what brings them
OPTIONAL = {
    "transformers": ("tokenizers without a tokenizer.json; verify", 'pip install ".[tokenizers]"'),
    "sentencepiece": ("tokenizers of SentencePiece files", 'pip install ".[tokenizers]"'),
    "torch": ("verify", "pip install torch"),
    "optax": ("training", 'pip install ".[train]"'),
    "orbax-checkpoint": ("training", 'pip install ".[train]"'),
    "grain": ("training", 'pip install ".[train]"'),
}
FORMATS = {"safetensors": None, "pytorch_model.bin": None, "GGUF": "gguf"}  # the package that reads each
LOW_DISK = 20 << 30


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it: an empty `advice` means that all is well."""

    topic: str
    name: str
    found: str
    advice: str = ""


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, memory, caches and formats, with a line of advice where something is missing.

    For reports of problems: nothing here is secret.
    """
    found = list(findings())
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    print_table(
        ("topic", "name", "found", "advice"), [(one.topic, one.name, one.found, one.advice or "ok") for one in found]
    )


def findings() -> Iterator[Finding]:
    """Yields everything that is looked at, in the order of the table."""
    yield Finding("version", "python", f"{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        known = _version(name)
        yield Finding("version", name, known or "missing", "" if known else f"pip install {name}")
    for name, (purpose, command) in OPTIONAL.items():
        known = _version(name)
        yield Finding("version", name, known or "missing", "" if known else f"for {purpose}: {command}")
    yield from _devices()
    yield from _memory()
    yield from _caches()
    for name, package in FORMATS.items():
        known = package is None or _version(package) is not None
        yield Finding("format", name, "readable" if known else "unreadable", "" if known else f"pip install {package}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # of a driver, of any kind
        yield Finding(
            "device", "JAX", f"fails: {' '.join(str(error).split())[:200]}", "JAX_PLATFORMS=cpu leaves it out"
        )
        return
    kinds: dict[str, list[Any]] = {}
    for device in devices:
        kinds.setdefault(device.device_kind, []).append(device)
    for kind, alike in kinds.items():
        memory = (alike[0].memory_stats() or {}).get("bytes_limit")
        each = f", {size(memory)} each" if memory else ""
        advice = "pass auto_shard_params=True to use all of them" if len(alike) > 1 else ""
        yield Finding("device", f"{len(alike)} x {kind}", f"{alike[0].platform}{each}", advice)
    if all(device.platform == "cpu" for device in devices) and any(Path("/dev").glob("nvidia[0-9]*")):
        yield Finding("device", "NVIDIA GPU", "not used by JAX", 'pip install "jax[cuda12]"')


def _memory() -> Iterator[Finding]:
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        yield Finding("memory", "host", "not told by this system")
        return
    page, total, free = (os.sysconf(name) for name in names)
    yield Finding("memory", "host", f"{size(page * free)} free of {size(page * total)}")


def _caches() -> Iterator[Finding]:
    from shutil import disk_usage

    from huggingface_hub import constants

    from easydel.compilation import cache_home

    places = {"Hub": Path(constants.HF_HUB_CACHE), "compiled programs": cache_home() / "easydel" / "xla"}
    for name, place in places.items():
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        free = disk_usage(there).free
        advice = "" if os.access(there, os.W_OK) else "it cannot be written: set HF_HOME or XDG_CACHE_HOME"
        advice = advice or ("little room for models" if name == "Hub" and free < LOW_DISK else "")
        yield Finding("cache", name, f"{place}, {size(free)} free", advice)
    offline = constants.HF_HUB_OFFLINE
    yield Finding("hub", "access", "offline" if offline else "online", "unset HF_HUB_OFFLINE" if offline else "")
