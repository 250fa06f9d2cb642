"""A prompt's pass in small programs: one before the layers, one for each kind of layer, one behind them.

Layers of a kind share a program, whatever their parameters. One program for all N layers would take about N times as
long to compile, load and warm up, and run no faster. Only for long prompts is it worth grouping a few layers. A step of
decoding is one program: there the calls themselves would count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from easydel.generate.programs import DecodeState, Made, enter, leave, pass_layers, prefill
from easydel.generate.prompt import Prompt
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules
from easydel.tree import flatten

Params = Mapping[str, Any]
Program = Callable[[Callable[..., Any]], Callable[..., Any]]
# Number of layers that share a call, for prompts of more than LONG tokens in all. On CPUs the temporaries of each call
# are new memory: its first touch takes 5 % of a pass of single layers, 3 % with groups. Larger groups compile longer.
LONG = 1024
TOGETHER = 3
REPEATS = 4  # average number of layers of a kind from which three programs compile faster than one


def first_pass(
    program: Program, model: LanguageModel, params: Params, prompt: Prompt, source: Prompt | None, rules: Rules
) -> tuple[DecodeState, Made]:
    """Returns the state after the first new token, by the programs that suit the model. `source` is for an encoder.

    `program` converts a function of `programs` to one that takes its arguments after the model.
    """
    kinds = kinds_of_layers(model, params)
    if len(kinds) < REPEATS * max(len(set(kinds)), 1):
        return program(prefill)(params, prompt, source, rules)
    outer = {**params, "model": {name: part for name, part in params["model"].items() if name != "layers"}}
    (flow, context), caches = program(enter)(outer, prompt), []
    together = TOGETHER if prompt.ids_BT.size > LONG else 1
    for start in range(0, len(kinds), together):
        group = kinds[start : start + together]
        layers = [_layer(params, start + offset) for offset in range(len(group))]
        flow, passed = program(pass_layers)(tuple(group), np.int32(start), layers, flow, context)
        caches += passed
    state, made = program(leave)(outer, flow, prompt, rules)
    return replace(state, cache={**state.cache, "layers": caches}), made


def kinds_of_layers(model: LanguageModel, params: Params) -> Sequence[int]:
    """Returns for each layer the number of the first one with an equal record and parameters of the same names.

    Empty if layers cannot be called one by one: behind an encoder, and where they are stacked.
    """
    if model.record.has_encoder or model.policy.scan_layers:
        return []
    first: dict[tuple[Any, ...], int] = {}
    return [
        first.setdefault((alike, *sorted(flatten(_layer(params, index)))), index)
        for index, alike in enumerate(model.record.alike)
    ]


def _layer(params: Params, index: int) -> Params:
    """Returns a layer's parameters by name: trees that JAX has mapped are in another order."""
    return params["model"]["layers"][str(index)]
