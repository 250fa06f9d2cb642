"""Activation functions by the names that Hugging Face configs use."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from easydel.errors import UnsupportedModelError

Activation = Callable[[jax.Array], jax.Array]


def _gelu_exact(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _relu2(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu_exact,
    "gelu_python": _gelu_exact,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": _relu2,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "mish": jax.nn.mish,
    "linear": lambda x: x,
}


def activation(name: str) -> Activation:
    """Returns the function of that name. Raises UnsupportedModelError, which lists the known names."""
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {name!r:.100} is not known", hint=f"known: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]
