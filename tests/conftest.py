"""The whole suite runs on eight virtual CPU devices; JAX reads this when it starts its first backend."""

import os
from collections.abc import Iterator

import pytest

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
