"""Layers that a checkpoint stores otherwise than others, which therefore cannot be in one stack with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from easydel.weights.coded import CodedTensor
from easydel.weights.sources import Changed, TensorSource

NUMBER = re.compile(r"[./](\d+)[./]")  # the first in a name is the layer's, and further ones are of experts


def kinds_of_layers(
    tensors: Mapping[str, TensorSource], int8: Iterable[str], numbers: Sequence[int]
) -> tuple[int, ...]:
    """Returns a number for each layer, equal for layers whose quantized weights are the same ones in the same forms.

    `int8` are paths of parameters that are int8 whatever their tensors say. `numbers` are those of the layers in names.
    """
    found: dict[int, set[tuple[str, object]]] = {number: set() for number in numbers}
    stored = {name: form for name, tensor in tensors.items() if (form := _form(tensor)) is not None}
    for name, form in [*stored.items(), *((path, "int8") for path in int8)]:
        number = NUMBER.search(name)
        if number is not None and int(number[1]) in found:
            found[int(number[1])].add((NUMBER.sub(".*.", name[number.end() - 1 :]), form))
    kinds = [frozenset(found[number]) for number in numbers]
    order = list(dict.fromkeys(kinds))
    return tuple(map(order.index, kinds))


def _form(tensor: TensorSource) -> object:
    """Returns what has to agree in one parameter; None for a tensor that is not quantized."""
    while isinstance(tensor, Changed):
        tensor = tensor.of
    return replace(tensor.form, block=(1, 1), extra=()) if isinstance(tensor, CodedTensor) else None
