"""Checkpoints as mlx-lm saves them: experts are stacked under names of their own, and some tensors are changed.

mlx-lm calls that sanitizing. Nothing in a config says so; the metadata of the files has "format": "mlx".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from easydel.errors import UnsupportedModelError
from easydel.weights.expressions import Index, with_ends
from easydel.weights.names import Names
from easydel.weights.sources import FLOAT32, Changed, TensorSource, Turned

# What names of stacked experts have in place of our `experts` and the projection after it.
EXPERTS = {
    "switch_mlp.fc1": {"up_proj": "switch_mlp.fc1", "down_proj": "switch_mlp.fc2"},
    "switch_mlp.up_proj": {"(gate|up|down)_proj": r"switch_mlp.\1_proj"},
    "experts.switch_glu.up_proj": {"(gate|up|down)_proj": r"experts.switch_glu.\1_proj"},
    "experts.up_proj": {"(gate|up|down)_proj": r"experts.\1_proj"},
}
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")  # mlx-lm calls dense ones so, too
CONVOLUTION = re.compile(r".*conv\w*\.weight")
_EXPERT = {part: re.compile(rf".*\.\d+\.(?P<within>.*?)(?P<part>{re.escape(part)})\.weight") for part in EXPERTS}
QUERIES, VALUES, LATENTS = ".embed_q.weight", ".unembed_out.weight", ".kv_b_proj.weight"


def as_mlx_saves(
    names: Names, tensors: Mapping[str, TensorSource], file: Path
) -> tuple[Names, Mapping[str, TensorSource]]:
    """Returns the table for mlx-lm's files, and their tensors with Hugging Face's numbers in Hugging Face's shapes."""
    turned = {name for name, tensor in tensors.items() if _is_turned(name, tensor)}
    if names.mlx_folded and turned:
        raise UnsupportedModelError(
            f"mlx-lm has multiplied {names.mlx_folded} into these weights",
            file=file,
            hint="use the checkpoint that it was made from",
        )
    raised = re.compile("|".join(names.mlx_raised)) if names.mlx_raised and turned else None
    found: dict[str, TensorSource] = {}
    for name, tensor in tensors.items():
        if name in turned:
            found[name] = Turned(tensor)
        elif raised is not None and raised.fullmatch(name):
            found[name] = Lowered(tensor)
        elif name.endswith(QUERIES) and (values := tensors.get(name.removesuffix(QUERIES) + VALUES)) is not None:
            latents = Latents(name.removesuffix(QUERIES) + LATENTS, tensor, values)
            found[latents.name] = latents
        elif not (name.endswith(VALUES) and name.removesuffix(VALUES) + QUERIES in tensors):
            found[name] = tensor
    return _table(names, found), found


def _table(names: Names, tensors: Mapping[str, TensorSource]) -> Names:
    """Returns the table in which experts are stacked and have names of mlx-lm's, if the tensors do."""
    found = next((match for part in EXPERTS for name in tensors if (match := _EXPERT[part].fullmatch(name))), None)
    if found is None:
        return names
    within, rows = found["within"], EXPERTS[found["part"]]
    renames = {
        ours: theirs
        for ours, theirs in names.renames.items()
        if not re.search(r"\bexperts\\?\.", ours)
        and (ours not in PROJECTIONS or any(f".{theirs}." in name for name in tensors))
    }
    for projection, theirs in rows.items():
        renames |= {rf"experts\.{projection}": theirs, rf"mlp\.experts\.{projection}": f"{within}{theirs}"}
    fused = tuple(entry for entry in names.fused if not any("experts." in part for part in entry.parts))
    transposed = tuple(module for module in names.transposed if not module.startswith("experts."))
    return replace(names, renames=renames, fused=fused, transposed=transposed, stacked_experts=True)


def _is_turned(name: str, tensor: TensorSource) -> bool:
    """True for the kernel of a convolution of each channel alone, [channels, width, 1] where ours is [.., 1, width]."""
    return len(tensor.shape) == 3 and tensor.shape[2] == 1 < tensor.shape[1] and bool(CONVOLUTION.fullmatch(name))


class Lowered(Changed):
    """A tensor less one: mlx-lm adds it to norms that do so themselves in transformers."""

    @property
    def dtype(self) -> np.dtype:
        return FLOAT32

    def read(self, index: Index = ()) -> np.ndarray:
        return self.of.read(index).astype(FLOAT32) - 1


@dataclass(frozen=True, eq=False)
class Latents:
    """The projection from latents to keys and values, which mlx-lm splits in two for each head.

    `queries` are [heads, latents, key channels], `values` [heads, value channels, latents], and this is
    [heads * (key channels + value channels), latents].
    """

    name: str
    queries: TensorSource
    values: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        heads, latents, channels = self.queries.shape
        return heads * (channels + self.values.shape[1]), latents

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def file(self) -> Path:
        return self.queries.file

    @property
    def nbytes(self) -> int:
        return self.queries.nbytes + self.values.nbytes

    def read(self, index: Index = ()) -> np.ndarray:
        rows, columns = with_ends(index, self.shape)
        size = self.queries.shape[2] + self.values.shape[1]
        heads = slice(rows.start // size, -(-rows.stop // size))
        keys = self.queries.read((heads, columns, slice(None))).swapaxes(1, 2)
        both = np.concatenate([keys, self.values.read((heads, slice(None), columns))], axis=1)
        base = heads.start * size
        return both.reshape(-1, both.shape[2])[rows.start - base : rows.stop - base : rows.step]
