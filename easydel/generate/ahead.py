"""Compiling what `generate` will run before the parameters are there: while they load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from easydel.generate.decode import stages
from easydel.generate.programs import grow, loop, prefill, step
from easydel.generate.prompt import Prompt
from easydel.model import BaseNNXModule
from easydel.ops.sampling import Rules


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

    `shapes` are the parameters as `jax.ShapeDtypeStruct` with the sharding that they will have.
    """
    state, _ = _compiled(model, prefill, shapes, prompt, source, rules)
    for length, limit in stages(prompt.length, new)[:1]:
        state = _compiled(model, grow, state, length, static_argnums=1)
        if streamed:
            _compiled(model, step, shapes, state, rules, donate_argnums=1)
        else:
            _compiled(model, loop, shapes, state, rules, np.int32(limit), donate_argnums=1)


def _compiled(model: BaseNNXModule, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The results of a program as shapes."""
    lowered = model.compiled(function, **options).lower(*arguments)
    placed = lowered.compile().output_shardings
    return jax.tree.map(
        lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding), lowered.out_info, placed
    )
