"""The whole suite runs on eight virtual CPU devices; JAX reads this when it starts its first backend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loaded import Loaded

DEVICES = "--xla_force_host_platform_device_count"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # a run shall not depend on the one before
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """LLVM optimizes less, for modules that compile a hundred tiny models: a third of their time."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, quick_compilation: None
) -> Iterator[Loaded]:
    """The model of the case that a test is parametrized with; a module may `make` its references itself."""
    import jax
    from loaded import load
    from parity import make_reference

    make = getattr(request.module, "make", make_reference)
    yield load(request.param, tmp_path_factory.mktemp("model"), make)
    jax.clear_caches()  # hundreds of compiled programs would fill the memory
