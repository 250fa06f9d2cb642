"""A family's table: the names and layouts of its checkpoints for our canonical names, in both directions.

Canonical names are Llama's in every family: model.layers.N.self_attn.q_proj.kernel. Checkpoint names that agree, as
model.layers.N.self_attn.q_proj.weight does, need no entry: the leaves kernel, embedding and scale are `weight` there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from easydel.weights.expressions import Expression, Reshape, Rows, Source, Stack, Transpose

# Row counts of the parts of a fused tensor -> for each part, its rows of the tensor.
Layout = Callable[[Sequence[int]], list[np.ndarray]]
Shape = tuple[int, ...]
CHECKPOINT_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


def concatenated(sizes: Sequence[int]) -> list[np.ndarray]:
    """Lays out one part after the other: q | k | v, gate | up."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def grouped(groups: int) -> Layout:
    """Lays out `groups` times a share of each part: per kv head, queries, key and value (Falcon, GPT-NeoX, BLOOM)."""

    def layout(sizes: Sequence[int]) -> list[np.ndarray]:
        share = [size // groups for size in sizes]
        rows = np.arange(sum(share) * groups).reshape(groups, -1)
        return [part.ravel() for part in np.split(rows, np.cumsum(share)[:-1], axis=1)]

    return layout


def interleaved(sizes: Sequence[int]) -> list[np.ndarray]:
    """Lays out one row of each part in turn: gate0, up0, gate1, up1, ... (GPT-OSS)."""
    return [np.arange(part, sum(sizes), len(sizes)) for part in range(len(sizes))]


@dataclass(frozen=True)
class Fused:
    """The modules `parts` (canonical, relative: "self_attn.q_proj") share the checkpoint's `name` in `layout`.

    Rows are on the dimension `kernel_dim` of kernels: -3 in convolutions, [channels, 1, width]. Only paths that begin
    with `within` (canonical: "model.decoder") count.
    """

    name: str
    parts: tuple[str, ...]
    layout: Layout = concatenated
    kernel_dim: int = -2
    within: str = ""

    def holds(self, module: str) -> bool:
        """True if the `module` (its whole canonical name) is one of the parts."""
        return module.startswith(self.within) and any(_ends(module, part) for part in self.parts)

    def dim(self, leaf: str) -> int:
        """The dimension of a `leaf` that rows are on."""
        return self.kernel_dim if leaf == "kernel" else -1


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
NUMBER = re.compile(r"(?<![^./])\d+(?![^./])")  # of a layer, of an expert


def one_row(shape: Shape) -> Shape:
    """Returns the shape with one more dimension in front, of size 1 (BART's final_logits_bias)."""
    return (1, *shape)


@dataclass(frozen=True, eq=False)  # compared by identity: it is a static attribute of models, which must be hashable
class Names:
    """The table. Its entries match whole parts between dots: "layers" matches a part of a dotted name, not a substring.

    "Ours" are canonical names, "theirs" the checkpoint's.
    `renames`: ours -> theirs, in one pass: from left to right, the longest row that matches at a part replaces it.
    Ours are regular expressions; numbers stand in the name as `*`. In theirs, `{:-1}` is the next number less one.
    `fused`: tensors that hold several of our parameters.
    `transposed`: their modules whose weight is [in, out] (or [expert, in, out]).
    `stacked_experts`: their experts are one tensor [expert, ...]; otherwise there is one per expert, `experts.N.`.
    `ignored`: regular expressions (matched from the start) of their tensors that need no loading: buffers.
    `leaves`: our leaf names -> theirs; others are the same in both.
    `reshaped`: their modules or tensors of another shape -> a function to it from our shape (transposed, if listed).
    `substitutes`: their tensors that a file may lack -> tensors with the same values, of which the first found is used.
    `optional`: their tensors that are zero where a file lacks them.
    `listed`: their modules with one tensor for each row of ours, `norms.N.`.
    `exact`: regular expressions of our modules and parameters that loading never rounds.
    `prefix`: their name of our `model`, which holds all but the head; files saved without a head leave it out.
    `mlx_raised`: regular expressions of their tensors that mlx-lm's files have plus one.
    `mlx_folded`: what mlx-lm multiplies into weights; its files are refused then.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    transposed: tuple[str, ...] = ()
    stacked_experts: bool = False
    ignored: tuple[str, ...] = ()
    leaves: Mapping[str, str] = field(default_factory=lambda: CHECKPOINT_LEAVES)
    reshaped: Mapping[str, Callable[[Shape], Shape]] = field(default_factory=dict)
    substitutes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    prefix: str = "model"
    mlx_raised: tuple[str, ...] = ()
    mlx_folded: str = ""

    def extended(self, renames: Mapping[str, str] | None = None, **more: Any) -> Names:
        """Returns this table with `more` in each given field: further entries, or another value.

        A new entry replaces one with the same key.
        """
        given = {"renames": renames or {}, **more}
        return replace(self, **{name: _joined(getattr(self, name), value) for name, value in given.items()})

    def expression(self, path: str, shapes: Mapping[str, Shape]) -> Expression:
        """Returns the parameter at `path` ("model/layers/0/...") over their tensors; `shapes` are all parameters'."""
        numbers, form, shape = _numbers(path), self._form(NUMBER.sub("*", path)), shapes[path]
        rows = None if form.fused is None else self._rows(form.fused, path, shapes)
        if not form.one_by_one:
            return form.expression(form.name.format(*numbers), shape, rows)
        named = (form.name.format(*numbers, number) for number in range(shape[0]))
        return Stack(tuple([form.expression(name, shape[1:], rows) for name in named]))

    def is_exact(self, path: str) -> bool:
        """True if the parameter at `path` belongs to what loading never rounds."""
        dotted = path.replace("/", ".")
        return any(re.search(rf"(?<![^.])(?:{pattern})(?![^.])", dotted) for pattern in self.exact)

    def theirs(self, name: str) -> str:
        """Returns the checkpoint's spelling of a canonical dotted name."""
        return self._spelled(NUMBER.sub("*", name)).format(*_numbers(name))

    @cached_property
    def _form(self) -> Callable[[str], Form]:
        """Finds the form of a path whose numbers are `*`, once for all layers."""
        return cache(self._find)

    def _find(self, stem: str) -> Form:
        *module, leaf = stem.split("/")
        dotted = ".".join(module)
        fused = next((entry for entry in self.fused if entry.holds(dotted)), None)
        if fused is not None:
            part = next(part for part in fused.parts if _ends(dotted, part))
            dotted = f"{dotted.removesuffix(part)}{fused.name}"
        experts = ".experts." in f".{dotted}." and not self.stacked_experts
        listed = any(_ends(self._spelled(dotted), entry) for entry in self.listed)
        if experts:
            dotted = re.sub(r"(?<![^.])experts(?![^.])", "experts.*", dotted, count=1)
        elif listed:
            dotted = f"{dotted}.*"
        name = self._spelled(f"{dotted}.{self.leaves.get(leaf, leaf)}")
        owner = name.removesuffix(".weight")
        transposed = leaf == "kernel" and any(_ends(owner, entry) for entry in self.transposed)
        reshaped = next((shape for entry, shape in self.reshaped.items() if _ends(owner, entry)), None)
        return Form(name, leaf, fused, transposed, reshaped, experts or listed)

    def _rows(self, fused: Fused, path: str, shapes: Mapping[str, Shape]) -> tuple[np.ndarray, int]:
        """Returns the rows that the parameter at `path` has of the `fused` tensor, and the number of all its rows."""
        module, leaf = path.rsplit("/", 1)
        paths = [part.replace(".", "/") for part in fused.parts]
        own = next(part for part in paths if f"/{module}".endswith(f"/{part}"))
        stem = module.removesuffix(own)
        sizes = tuple(shapes[f"{stem}{part}/{leaf}"][fused.dim(leaf)] for part in paths)
        return self._layout(fused, sizes)[paths.index(own)], sum(sizes)

    @cached_property
    def _layout(self) -> Callable[[Fused, tuple[int, ...]], list[np.ndarray]]:
        """Finds the rows of each part of a fused tensor, once for all layers."""
        return cache(lambda fused, sizes: fused.layout(sizes))

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        rows = {"model": self.prefix, **self.renames}
        return [(re.compile(rf"(?:{ours})(?![^.])"), theirs) for ours, theirs in rows.items()]

    def _spelled(self, stem: str) -> str:
        """Returns the checkpoint's spelling of a dotted name: numbers are `*` in ours and `{}` in theirs."""
        parts, place = [], 0
        while place < len(stem):
            matches = [(match, theirs) for ours, theirs in self._patterns if (match := ours.match(stem, place))]
            if matches:
                match, theirs = max(matches, key=lambda found: found[0].end())
                assert [other.end() for other, _ in matches].count(match.end()) == 1, f"two rows for {match[0]}"
                parts.append(match.expand(theirs))
                place = match.end() + 1
            else:
                part = stem[place:].split(".", 1)[0]
                parts.append(part)
                place += len(part) + 1
        return ".".join(filter(None, parts)).replace("*", "{}")


class Form(NamedTuple):
    """The table's answer for all parameters whose paths differ in numbers alone.

    `name` is their tensor's name, with `{}` for numbers. With `one_by_one` each row of ours is a tensor, and the row's
    number comes last.
    """

    name: str
    leaf: str
    fused: Fused | None
    transposed: bool
    reshaped: Callable[[Shape], Shape] | None
    one_by_one: bool

    def expression(self, name: str, shape: Shape, rows: tuple[np.ndarray, int] | None) -> Expression:
        """Returns a parameter (or one row of it) of this `shape` over the tensor `name`, or over some `rows` of it."""
        expression: Expression = Source(name)
        if self.reshaped is not None:
            assert rows is None, f"{name} is fused and has another shape"
            ours = (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape
            expression = Reshape(expression, self.reshaped(ours), ours)
        if self.transposed:
            expression = Transpose(expression)
        return expression if self.fused is None or rows is None else Rows(expression, *rows, self.fused.dim(self.leaf))


class _Number(str):
    """A number in a name. As a format, "-1" is a number to add to it."""

    def __format__(self, spec: str) -> str:
        return str(int(self) + int(spec)) if spec else str(self)


def _numbers(name: str) -> list[_Number]:
    return [_Number(found) for found in NUMBER.findall(name)]


def _joined(own: Any, more: Any) -> Any:
    if isinstance(own, Mapping):
        return {**own, **more}
    return own + more if isinstance(own, tuple) else more


def _ends(dotted: str, suffix: str) -> bool:
    return dotted == suffix or dotted.endswith(f".{suffix}")


# A directory written by `save_pretrained`: our own names and layouts.
OWN = Names(stacked_experts=True, leaves={})
