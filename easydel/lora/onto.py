"""Adapters added to a checkpoint's tensors while they are read: the model that results has none.

All of PEFT's plain arithmetic is possible so, whatever the parameters become: a kernel that a checkpoint stores fused
with others, experts, embeddings, int8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from easydel.checkpoint import Tensor
from easydel.errors import CheckpointError, UnsupportedModelError, listed
from easydel.lora.forms import EXPERTS, Factors, unflattened
from easydel.lora.merged import Adapted, Shifted, WithRows
from easydel.lora.opened import AdapterFile, Site, values_of
from easydel.lora.places import per_layer_shapes
from easydel.module import LanguageModel
from easydel.source import CheckpointSource
from easydel.weights.expressions import Expression, Source, Stack, Transpose
from easydel.weights.names import Names
from easydel.weights.plan import head_and_embedding, resolved
from easydel.weights.sources import TensorSource


class Matrix(NamedTuple):
    """Two factors, [..., r, in] and [..., out, r], and what their product is multiplied with."""

    low: np.ndarray
    high: np.ndarray
    scale: float


def with_adapters(source: CheckpointSource, model: LanguageModel, adapters: AdapterFile) -> CheckpointSource:
    """Returns the checkpoint with the adapters added to its tensors; `model` is the one that it describes.

    Raises CheckpointError with all that does not fit, UnsupportedModelError for what is not implemented.
    """
    if source.manifest is not None:
        hint = "load it without, and call easydel.lora.load_adapters; or load the checkpoint that it was made from"
        raise UnsupportedModelError("adapters are not added to what save_pretrained wrote", file=source.path, hint=hint)
    base = _Base.of(source, model)
    base.replace_whole(adapters)
    for site, leaves in adapters.adapters.items():
        base.adapt(adapters, site, leaves)
    if base.problems:
        problem = f"the adapters do not fit the model:{listed(base.problems)}"
        raise CheckpointError(problem, file=adapters.file, hint="are they another model's?")
    base.untie()
    used = {id(tensor) for tensor in base.found.values()}
    others = {name: tensor for name, tensor in source.tensors.items() if id(tensor) not in used}
    return replace(source, tensors={**others, **base.found, **base.changed})


@dataclass
class _Base:
    """The tensors that a model reads, by their names in the files' table (`names`), and what adapters make of them.

    `transposed` says of each whether it is stored [in, out]; `tied` has the names of a tied head and its embedding.
    """

    model: LanguageModel
    names: Names
    found: dict[str, TensorSource]
    transposed: Mapping[str, bool]
    experts: Mapping[str, Expression]
    tied: tuple[str, str] | None
    changed: dict[str, TensorSource] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _both: bool = False  # new token vectors are also the tied head's

    @classmethod
    def of(cls, source: CheckpointSource, model: LanguageModel) -> _Base:
        shapes = per_layer_shapes(model)
        table = source.names or model.names
        expressions = {path: table.expression(path, shapes) for path in shapes}
        transposed = {name: whether for one in expressions.values() for name, whether in _sources(one)}
        tied = model.record.head.tied
        found = resolved(transposed, table, source.tensors, tied=tied)
        names = head_and_embedding(table) if tied and not model.record.has_encoder else None
        if names is not None and names[1] in found:
            found[names[0]] = found[names[1]]
            transposed[names[0]] = transposed[names[1]]
        experts = {path: one for path, one in expressions.items() if "/experts/" in path}
        return cls(model, table, found, transposed, experts, names)

    def name_of(self, name: str) -> str | None:
        """Returns the table's name of a tensor that transformers, of any version, calls `name`."""
        module, _, leaf = name.rpartition(".")
        text = name.replace("language_model.", "", 1)
        spelled = (name, text, f"{self.names.prefix}.{name}", f"{self.names.theirs(module)}.{leaf}")
        return next((one for one in spelled if one in self.found), None)

    def current(self, name: str) -> TensorSource:
        return self.changed.get(name, self.found[name])

    def replace_whole(self, adapters: AdapterFile) -> None:
        """Takes the tensors that the file has whole: of `modules_to_save`, biases, and copies of what is adapted."""
        for name, tensor in {**adapters.copies, **adapters.whole}.items():
            own = self.name_of(name)
            if own is None:
                self.problems.append(f"{tensor.name} has no place in the model")
            elif tuple(tensor.shape) != tuple(self.found[own].shape):
                self.problems.append(
                    f"{tensor.name} is {list(tensor.shape)}, the model's is {list(self.found[own].shape)}"
                )
            else:
                values_of(tensor)
                self.changed[own] = tensor

    def adapt(self, adapters: AdapterFile, site: Site, leaves: Mapping[str, Tensor]) -> None:
        """Adds the adapters of one module."""
        own = self.name_of(f"{site.module}.weight")
        label = f"{site.module} ({', '.join(leaves)})"
        if rows := leaves.get("token_adapter.trainable_tokens_delta"):
            self._tokens(adapters, site, own, rows)
            return
        embedding = "lora_embedding_A" in leaves
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        if missing := [name for name in names if name not in leaves]:
            self.problems.append(f"{site.module}.{' and '.join(missing)} are missing")
            return
        low, high = (values_of(leaves[name]) for name in names)
        if own is not None:
            lora = adapters.lora.at(site.module)
            matrix = Matrix(low, high, lora.scale)
            if not self._fits(own, matrix, lora.r, label, transposed=embedding or self.transposed[own]):
                return
            magnitude = leaves.get("lora_magnitude_vector")
            lengths = None if magnitude is None else values_of(magnitude).ravel()
            self.changed[own] = Adapted(
                self.current(own), *matrix, transposed=embedding or self.transposed[own], magnitude=lengths
            )
            self._shift(site, leaves, lora.scale)
        elif embedding and self.model.record.has_encoder:
            self.problems.append(f"{label} is on the token vectors of an encoder-decoder: not implemented")
        elif not embedding and (parameter := adapters.parameter_of(site)) is not None:
            self._adapt_experts(adapters, site, parameter, low, high)
        else:
            self.problems.append(f"{label} has no place in the model")

    def _fits(self, own: str, matrix: Matrix, r: int, label: str, *, transposed: bool) -> bool:
        shape = tuple(self.found[own].shape)
        if len(shape) != 2:
            self.problems.append(f"{label} is on a convolution, {list(shape)}: not implemented")
            return False
        outputs, inputs = reversed(shape) if transposed else shape
        given, expected = [matrix.low.shape, matrix.high.shape], [(r, inputs), (outputs, r)]
        if given != expected:
            told = [" and ".join(str(list(one)) for one in pair) for pair in (given, expected)]
            self.problems.append(f"{label} is {told[0]}, expected {told[1]}")
        return given == expected

    def _shift(self, site: Site, leaves: Mapping[str, Tensor], scale: float) -> None:
        """Adds the bias of an adapter's second factor to the module's."""
        if (tensor := leaves.get("lora_B.bias")) is None:
            return
        own = self.name_of(f"{site.module}.bias")
        if own is None or "lora_magnitude_vector" in leaves:
            self.problems.append(f"{tensor.name}: there is no bias here to add it to")
        else:
            self.changed[own] = Shifted(self.current(own), scale * values_of(tensor))

    def _tokens(self, adapters: AdapterFile, site: Site, own: str | None, tensor: Tensor) -> None:
        rows = adapters.rows_of(site.module)
        if own is None or tuple(tensor.shape) != (len(rows), self.found[own].shape[-1]):
            self.problems.append(f"{tensor.name} is {list(tensor.shape)}, for rows {list(rows)[:8]}")
        elif max(rows, default=0) >= self.found[own].shape[0]:
            self.problems.append(f"{tensor.name} is for row {max(rows)} of {self.found[own].shape[0]}")
        else:
            self.changed[own] = WithRows(self.current(own), rows, values_of(tensor))
            self._both = True  # as PEFT ties them

    def untie(self) -> None:
        """Gives a tied head a tensor of its own if adapters change it, or the token vectors, alone."""
        if self.tied is None:
            return
        head, embedding = self.tied
        if not self._both and self.changed.keys() & {head, embedding}:
            self.changed.setdefault(head, self.found[embedding])
            self.changed.setdefault(embedding, self.found[embedding])
        else:
            self.found.pop(head, None)

    def _adapt_experts(
        self, adapters: AdapterFile, site: Site, parameter: str, low: np.ndarray, high: np.ndarray
    ) -> None:
        lora = adapters.lora.at(f"{site.module}.{parameter}")
        whole = self.name_of(f"{site.module}.{parameter}")
        parts = list(self._parts(site, parameter))
        count = len(parts[0][1]) if parts else self.found[whole].shape[0] if whole else 0
        label = f"{site.module}.{parameter}"
        if not count or low.shape[0] != lora.r * count or high.shape[1] != lora.r * count:
            shapes = f"{list(low.shape)} and {list(high.shape)}"
            self.problems.append(f"{label} is {shapes}, for {count} experts and rank {lora.r}")
            return
        lows, highs = unflattened(Factors(low, high), count)
        if whole is not None:
            self._adapt_stack(whole, Matrix(lows, highs, lora.scale), label)
            return
        start = 0
        for rows, names in parts:
            for expert, name in enumerate(names):
                matrix = Matrix(lows[expert], highs[expert, start : start + rows], lora.scale)
                if self._fits(name, matrix, lora.r, label, transposed=self.transposed[name]):
                    self.changed[name] = Adapted(self.current(name), *matrix, transposed=self.transposed[name])
            start += rows
        if start != high.shape[0]:
            self.problems.append(f"{label} has {high.shape[0]} outputs, the model's {start}")

    def _adapt_stack(self, name: str, matrix: Matrix, label: str) -> None:
        """Adapts a tensor of all experts, whose orientation the factors show unless it is square."""
        outputs, inputs = matrix.high.shape[1], matrix.low.shape[2]
        sides = tuple(self.found[name].shape[1:])
        if sides not in ((outputs, inputs), (inputs, outputs)):
            self.problems.append(f"{label} is for [{outputs}, {inputs}], the model's is {list(sides)}")
            return
        transposed = self.transposed[name] if outputs == inputs else sides == (inputs, outputs)
        self.changed[name] = Adapted(self.current(name), *matrix, transposed=transposed)

    def _parts(self, site: Site, parameter: str) -> Iterator[tuple[int, list[str]]]:
        """Yields the kernels that a parameter of transformers consists of: their rows, and a tensor for each expert."""
        shapes = per_layer_shapes(self.model)
        for part in EXPERTS[parameter]:
            for path, expression in self.experts.items():
                stem = path.removesuffix(f"/{part}/kernel").replace("/", ".")
                ours = path.endswith(f"/{part}/kernel") and isinstance(expression, Stack)
                if ours and site.module in (stem, self.names.theirs(stem)):
                    yield shapes[path][1], [name for name, _ in _sources(expression)]


def _sources(expression: Expression, transposed: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields the tensors of an expression, and whether they are transposed."""
    if isinstance(expression, Source):
        yield expression.name, transposed
    elif isinstance(expression, Stack):
        for part in expression.of:
            yield from _sources(part, transposed)
    else:
        yield from _sources(expression.of, transposed or isinstance(expression, Transpose))
