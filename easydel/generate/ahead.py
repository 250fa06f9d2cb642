"""Compiling what `generate` will run before the parameters are there: while they load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from easydel.cache import cache_stages
from easydel.generate.programs import grow, loop, prefill, program, step
from easydel.generate.prompt import Prompt
from easydel.model import BaseNNXModule
from easydel.ops.sampling import Rules

# What is still being compiled for a model. Weak, so that nothing keeps the model.
_PENDING: WeakKeyDictionary[BaseNNXModule, Future[None]] = WeakKeyDictionary()


def compile_programs(
    model: BaseNNXModule,
    shapes: Mapping[str, Any],
    prompt: Prompt,
    source: Prompt | None,
    rules: Rules,
    new: int,
    *,
    streamed: bool,
) -> None:
    """Compile what `decode` runs for these arguments until its cache grows a second time; JAX keeps the programs.

    Returns when the first token can be made; the rest goes on in a thread, which `finish_compiling` waits for.
    `shapes` are the parameters as `jax.ShapeDtypeStruct` with the sharding that they will have.
    """
    state, _ = _compiled(model, prefill, shapes, prompt, source, rules)

    def compile_rest() -> None:
        grown = state
        for length, limit in cache_stages(prompt.length, new)[:1]:
            grown = _compiled(model, grow, grown, length)
            if streamed:
                _compiled(model, step, shapes, grown, rules)
            else:
                _compiled(model, loop, shapes, grown, rules, np.int32(limit))

    pool = ThreadPoolExecutor(1)
    _PENDING[model] = pool.submit(compile_rest)
    pool.shutdown(wait=False)


def finish_compiling(model: BaseNNXModule) -> None:
    """Wait for what is being compiled for a model, rather than compile it a second time."""
    if pending := _PENDING.pop(model, None):
        pending.result()


def _compiled(model: BaseNNXModule, function: Callable[..., Any], *arguments: Any) -> Any:
    """The results of a program as shapes."""
    lowered = program(model, function).lower(*arguments)
    placed = lowered.compile().output_shardings
    return jax.tree.map(
        lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding), lowered.out_info, placed
    )
