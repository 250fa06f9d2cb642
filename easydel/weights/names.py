"""A family's table: how its checkpoints call and lay out what we call by canonical names, in both directions.

Canonical names are Llama's in every family: model.layers.N.self_attn.q_proj.kernel. A checkpoint that calls it
model.layers.N.self_attn.q_proj.weight needs no entry; the leaves kernel, embedding and scale are `weight` there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from easydel.weights.expressions import Expression, Rows, Source, Squeeze, Stack, Transpose

# Row counts of the parts of a fused tensor -> for each part, which rows of the tensor are its own.
Layout = Callable[[Sequence[int]], list[np.ndarray]]
CHECKPOINT_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


def concatenated(sizes: Sequence[int]) -> list[np.ndarray]:
    """One part after the other: q | k | v, gate | up."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def grouped(groups: int) -> Layout:
    """`groups` times (a share of each part): per kv head its queries, its key, its value (Falcon, GPT-NeoX, BLOOM)."""

    def layout(sizes: Sequence[int]) -> list[np.ndarray]:
        share = [size // groups for size in sizes]
        rows = np.arange(sum(share) * groups).reshape(groups, -1)
        return [part.ravel() for part in np.split(rows, np.cumsum(share)[:-1], axis=1)]

    return layout


def interleaved(sizes: Sequence[int]) -> list[np.ndarray]:
    """Row by row in turn: gate0, up0, gate1, up1, ... (GPT-OSS)."""
    return [np.arange(part, sum(sizes), len(sizes)) for part in range(len(sizes))]


@dataclass(frozen=True)
class Fused:
    """The modules `parts` (canonical, relative: "self_attn.q_proj") share the checkpoint's `name` in `layout`."""

    name: str
    parts: tuple[str, ...]
    layout: Layout = concatenated


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True, eq=False)  # compared by identity: it is a static attribute of models, which must be hashable
class Names:
    """The table. Everything in it is relative to dots: "layers" matches a whole part of a dotted name, not a substring.

    `renames`: ours -> theirs, tried in order on the whole dotted name, all that match are applied.
    `fused`: tensors that hold several of our parameters.
    `transposed`: their modules whose weight is [in, out] (or [expert, in, out]).
    `stacked_experts`: their experts are one tensor [expert, ...] already; otherwise one per expert, `experts.N.`.
    `ignored`: regular expressions (matched from the start) of their tensors that hold nothing to load: buffers.
    `leaves`: our leaf names -> theirs; others are the same in both.
    `squeezed`: their tensors with one more dimension, of size 1, in front.
    `substitutes`: their tensors that a file may lack -> those that hold the same, the first that is there counts.
    `optional`: their tensors that are zero where a file lacks them.
    `listed`: their modules that are one for each row of ours, `norms.N.`.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    transposed: tuple[str, ...] = ()
    stacked_experts: bool = False
    ignored: tuple[str, ...] = ()
    leaves: Mapping[str, str] = field(default_factory=lambda: CHECKPOINT_LEAVES)
    squeezed: tuple[str, ...] = ()
    substitutes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()

    def extended(
        self,
        renames: Mapping[str, str] | None = None,
        *,
        fused: tuple[Fused, ...] = (),
        transposed: tuple[str, ...] = (),
        ignored: tuple[str, ...] = (),
    ) -> Names:
        """This table with more entries; `renames` go first."""
        return replace(
            self,
            renames={**(renames or {}), **self.renames},
            fused=self.fused + fused,
            transposed=self.transposed + transposed,
            ignored=self.ignored + ignored,
        )

    def expression(self, path: str, shapes: Mapping[str, tuple[int, ...]]) -> Expression:
        """The parameter at `path` ("model/layers/0/...") over their tensors; `shapes` of all parameters by path."""
        *module, leaf = path.split("/")
        dotted = ".".join(module)
        fused = next((entry for entry in self.fused if any(_ends(dotted, part) for part in entry.parts)), None)
        rows: tuple[np.ndarray, int] | None = None
        if fused is not None:
            part = next(part for part in fused.parts if _ends(dotted, part))
            stem = dotted.removesuffix(part)
            dim = _row_dim(leaf)
            sizes = [shapes[f"{stem}{other}.{leaf}".replace(".", "/")][dim] for other in fused.parts]
            rows = fused.layout(sizes)[fused.parts.index(part)], sum(sizes)
            dotted = f"{stem}{fused.name}"
        if ".experts." in f".{dotted}." and not self.stacked_experts:
            experts = shapes[path][0]
            stem, tail = dotted.split("experts.", 1)
            parts = [self._tensor(f"{stem}experts.{expert}.{tail}", leaf, rows) for expert in range(experts)]
            return Stack(tuple(parts))
        if any(_ends(self.theirs(dotted), entry) for entry in self.listed):
            return Stack(tuple(self._tensor(f"{dotted}.{row}", leaf, rows) for row in range(shapes[path][0])))
        return self._tensor(dotted, leaf, rows)

    def _tensor(self, dotted: str, leaf: str, rows: tuple[np.ndarray, int] | None) -> Expression:
        name = self.theirs(f"{dotted}.{self.leaves.get(leaf, leaf)}")
        expression: Expression = Source(name)
        if leaf == "kernel" and any(_ends(name.removesuffix(".weight"), entry) for entry in self.transposed):
            expression = Transpose(expression)
        if any(_ends(name.removesuffix(".weight"), entry) for entry in self.squeezed):
            expression = Squeeze(expression)
        if rows is not None:
            index, total = rows
            expression = Rows(expression, index, total, _row_dim(leaf))
        return expression

    def theirs(self, name: str) -> str:
        """A canonical dotted name as the checkpoint spells it."""
        for ours, theirs in self.renames.items():
            name = re.sub(rf"(?<![^.]){ours}(?![^.])", theirs, name)
        return re.sub(r"\.{2,}", ".", name).strip(".")


def _row_dim(leaf: str) -> int:
    return -2 if leaf == "kernel" else -1


def _ends(dotted: str, suffix: str) -> bool:
    return dotted == suffix or dotted.endswith(f".{suffix}")


# A directory written by `save_pretrained`: our own names and layouts.
OWN = Names(stacked_experts=True, leaves={})
