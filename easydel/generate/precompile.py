"""Compiles the programs of `generate` before the parameters exist: while they load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from easydel.generate.cache_lengths import cache_stages
from easydel.generate.prefill_by_layer import first_pass
from easydel.generate.programs import grow, loop, step
from easydel.generate.prompt import Prompt
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules

# The compilations still running for a model. Weak, so that this keeps no model alive.
_PENDING: WeakKeyDictionary[LanguageModel, Future[None]] = WeakKeyDictionary()


def compile_programs(
    model: LanguageModel,
    shapes: Mapping[str, Any],
    prompt: Prompt,
    source: Prompt | None,
    rules: Rules,
    new: int,
    *,
    streamed: bool,
) -> None:
    """Compiles the programs of `decode` for these arguments, until its cache grows a second time; JAX keeps them.

    Returns when the first token can be made; a thread compiles the rest, and `finish_compiling` waits for it. `shapes`
    are the parameters as `jax.ShapeDtypeStruct` with the sharding that they will have.
    """
    known: dict[Any, Any] = {}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: _compiled(model, function, arguments, known)

    state, _ = first_pass(compiled, model, shapes, prompt, source, rules)

    def compile_rest() -> None:
        for length, limit in cache_stages(prompt.length, new)[:1]:
            grown = compiled(grow)(state, length)
            if streamed:
                compiled(step)(shapes, grown, rules)
            else:
                compiled(loop)(shapes, grown, rules, np.int32(limit))

    pool = ThreadPoolExecutor(1)
    _PENDING[model] = pool.submit(compile_rest)
    pool.shutdown(wait=False)


def finish_compiling(model: LanguageModel) -> None:
    """Waits for a model's running compilations, rather than compile the same programs a second time."""
    if pending := _PENDING.pop(model, None):
        pending.result()


def _compiled(
    model: LanguageModel, function: Callable[..., Any], arguments: tuple[Any, ...], known: dict[Any, Any]
) -> Any:
    """Returns the results of a program as shapes; `known` holds those of programs that were compiled already."""
    leaves, structure = jax.tree.flatten(arguments)
    key = (function, structure, *map(_described, leaves))
    if key not in known:
        lowered = model.compiled(function).lower(*arguments)
        placed = lowered.compile().output_shardings
        known[key] = jax.tree.map(
            lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding),
            lowered.out_info,
            placed,
        )
    return known[key]


def _described(leaf: Any) -> Any:
    """Returns the key that programs are compiled for: shape, dtype and place of an array, or an argument's number."""
    return leaf if isinstance(leaf, int) else (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None))
