"""The record of adapters, and the module that computes with them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.errors import ArgumentError
from easydel.layers.linear import Linear, contract
from easydel.ops.coded import Coded

ALL_LINEAR = "all-linear"  # PEFT's name for all Linears but the head


@dataclass(frozen=True)
class LoRA:
    """Names, meaning and defaults of PEFT's `LoraConfig`; dropout is not implemented, and must be 0.

    `target_modules` is "all-linear" (all but the head), a regular expression for whole names of modules, or a list of
    names or ends of names: ("q_proj", "mlp.down_proj"). The checkpoint's names count, as in PEFT, and ours.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] = ALL_LINEAR
    use_rslora: bool = False
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ArgumentError(f"r={self.r!r}, expected a rank of at least 1")
        if isinstance(self.lora_alpha, bool) or not isinstance(self.lora_alpha, int | float):
            raise ArgumentError(f"lora_alpha={self.lora_alpha!r}, expected a number")
        if not isinstance(self.use_rslora, bool):
            raise ArgumentError(f"use_rslora={self.use_rslora!r}, expected True or False")
        if self.lora_dropout:
            raise ArgumentError(f"lora_dropout={self.lora_dropout!r} is not implemented", hint="leave it at 0")

    @property
    def scale(self) -> float:
        """alpha / r, or with `use_rslora` alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def selects(self, names: Sequence[str]) -> bool:
        """True if the module with these names (the checkpoint's and ours) is a target."""
        if self.target_modules == ALL_LINEAR:
            return "lm_head" not in names
        if isinstance(self.target_modules, str):
            try:
                return any(re.fullmatch(self.target_modules, name) for name in names)
            except re.error as error:
                raise ArgumentError(f"target_modules={self.target_modules!r} is no pattern: {error}") from None
        return any(f".{name}".endswith(f".{target}") for name in names for target in self.target_modules)


class AdaptedLinear(Linear):
    """A Linear with adapters; it takes over the parameters of `base`, stacked ones of scanned layers included."""

    def __init__(self, base: Linear, lora: LoRA):
        self.take_over(base)
        self.bias = base.bias
        self.policy, self.lora = base.policy, lora
        *layers, out, inputs = base.shape
        # float32 whatever the kernel's dtype: adapters are small, and 16 bits would round updates away
        self.lora_A = nnx.Param(jax.ShapeDtypeStruct((*layers, lora.r, inputs), jnp.float32))
        self.lora_B = nnx.Param(jax.ShapeDtypeStruct((*layers, out, lora.r), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        low = contract(x, self.lora_A[...], self.policy)
        return super().__call__(x) + contract(low, self.lora_B[...], self.policy) * self.lora.scale

    def merged(self, kernel: jax.Array | Coded, low: jax.Array, high: jax.Array) -> jax.Array:
        """Returns the kernel that includes the adapters, in the dtype of float parameters."""
        whole = kernel.whole(jnp.float32) if isinstance(kernel, Coded) else kernel.astype(jnp.float32)
        return (whole + self.lora.scale * (high @ low)).astype(self.policy.param_dtype)
