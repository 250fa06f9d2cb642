"""The prompts of a call: checked, and padded to a length that programs are compiled for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from easydel.errors import ArgumentError
from easydel.inputs import check_array, check_tokens, host_array

# B batch, T longest prompt


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompt:
    """Token ids, the mask of attended ones, and perhaps of an encoder's that see all. Compiled programs take it too."""

    ids_BT: np.ndarray
    attended_BT: np.ndarray
    marked_BT: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Number of tokens in each row, padding included."""
        return self.ids_BT.shape[1]

    @property
    def attended(self) -> int:
        """Number of attended tokens in the longest prompt."""
        return int(self.attended_BT.sum(axis=1).max())

    def repeated(self, times: int) -> Prompt:
        """Returns the prompt with each row repeated `times` times."""
        return self if times == 1 else self._changed(lambda part: part.repeat(times, 0))

    def padded(self, length: int) -> Prompt:
        """Returns `length` tokens, padded on the left; tokens with padding behind them are moved to the right."""
        prompt = self
        if (self.attended_BT[:, :-1] & ~self.attended_BT[:, 1:]).any():
            order = np.argsort(self.attended_BT, axis=1, kind="stable")
            prompt = self._changed(lambda part: np.take_along_axis(part, order, axis=1))
        return prompt.preceded(length)

    def part(self, start: int, length: int) -> Prompt:
        """Returns `length` tokens of each row, from `start` on."""
        return self._changed(lambda part: part[:, start : start + length])

    def extended(self, length: int) -> Prompt:
        """Returns `length` tokens, padded on the right."""
        return self._widened((0, length - self.length))

    def preceded(self, length: int) -> Prompt:
        """Returns `length` tokens, padded on the left."""
        return self._widened((length - self.length, 0))

    def _widened(self, space: tuple[int, int]) -> Prompt:
        return self._changed(lambda part: np.pad(part, ((0, 0), space)))

    def _changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Prompt:
        marked = None if self.marked_BT is None else change(self.marked_BT)
        return Prompt(change(self.ids_BT), change(self.attended_BT), marked)


def read_prompt(
    input_ids: Any,
    attention_mask: Any,
    vocabulary: int,
    padding: int | None,
    global_attention_mask: Any = None,
    *,
    names: tuple[str, str] = ("input_ids", "attention_mask"),
) -> Prompt:
    """Returns the prompts. Without `attention_mask`, all tokens that are not `padding` are attended.

    Raises ArgumentError, with the arguments' `names`, unless `input_ids` [B, T] are tokens of the vocabulary, at least
    one of them attended in each row.
    """
    own, of_mask = names
    ids = _array(own, input_ids)
    check_tokens(own, ids, vocabulary)
    if attention_mask is None:
        attended = np.ones(ids.shape, bool) if padding is None else ids != padding
    else:
        attended = _array(of_mask, attention_mask).astype(bool)
    marked = global_attention_mask
    marked = None if marked is None else _array("global_attention_mask", marked).astype(bool)
    for name, mask in {of_mask: attended, "global_attention_mask": marked}.items():
        if mask is not None and mask.shape != ids.shape:
            raise ArgumentError(f"{name} has shape {mask.shape}, but {own} {ids.shape}")
    if not attended.any(axis=1).all():
        raise ArgumentError(f"row {int(np.argmin(attended.any(axis=1)))} of {own} is all padding")
    return Prompt(ids.astype(np.int32), attended, marked)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tracer):
        raise ArgumentError(f"{name} is traced", hint="generate compiles its own programs: call it outside of jax.jit")
    if value is None:
        raise ArgumentError(f"{name} is missing", hint="pass token ids [batch, length]")
    array = host_array(name, value)
    check_array(name, array)
    return array
