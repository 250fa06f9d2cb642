"""The modules that hold one large matrix, as floats or by codes: declared before any value is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from easydel.forms import BESIDE, FACTOR, GAIN, OFFSET, ORDER, SCALE, Form
from easydel.ops.coded import Coded
from easydel.tree import flatten, modules_of, params_of, split_of, unfilled

# the sharding of each parameter of these shapes
Split = Callable[[Mapping[str, Any]], Mapping[str, jax.sharding.Sharding]]


class Stored(nnx.Module):
    """A module with one large parameter, named `matrix`, that may be stored by codes.

    Then `form` says how, the parameter holds the codes, and beside it are `<matrix>_scale` and what else the form has:
    `<matrix>_offset`, `<matrix>_factor`, `<matrix>_order`, `<matrix>_gain`.
    """

    matrix = "kernel"
    form: Form | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, whatever its codes' is."""
        *lead, columns = getattr(self, self.matrix).get_raw_value().shape
        return (*lead, columns if self.form is None else columns * self.form.per_byte)

    @property
    def split(self) -> PartitionSpec | None:
        """How the matrix's two dimensions are split over a mesh, if that is known."""
        return split_of(getattr(self, self.matrix))

    def store(self, form: Form, scale: np.dtype, shift: np.dtype | None = None) -> None:
        """Declares the parameter, which has no values yet, as codes with scales and shifts of these dtypes."""
        dtypes = {"": form.held, SCALE: scale, OFFSET: shift, ORDER: np.int32, FACTOR: np.float32, GAIN: np.float32}
        for end, shape in form.parts(self.shape).items():
            setattr(self, f"{self.matrix}{end}", nnx.data(unfilled(shape, dtypes[end])))
        self.form = form

    def weight(self) -> jax.Array | Coded:
        """Returns the matrix: its floats, or its codes."""
        return self.weight_in(params_of(self))

    def weight_in(self, leaves: Mapping[str, jax.Array]) -> jax.Array | Coded:
        """Returns the matrix made of the module's parameters `leaves`, which may be parts of its own."""
        if self.form is None:
            return leaves[self.matrix]
        scales, *others = (leaves.get(f"{self.matrix}{end}") for end in BESIDE)
        assert scales is not None, f"{self.matrix} is codes without scales"
        return Coded(leaves[self.matrix], scales, *others, form=self.form)


def storable(module: Any) -> dict[str, Stored]:
    """Returns the modules below `module` with a parameter that can be stored by codes, by the parameter's path."""
    return {f"{prefix}{found.matrix}": found for prefix, found in modules_of(module, Stored)}


def device_counts(module: Any, forms: Mapping[str, Form], split: Split) -> dict[str, tuple[int, ...]]:
    """Returns the number of devices that share each dimension of parameters that would be stored in these forms."""
    leaves, places = flatten(params_of(module)), storable(module)
    for path, form in forms.items():
        leaves[path] = jax.ShapeDtypeStruct(form.codes_shape(places[path].shape), form.held)
    placed = split(leaves)
    return {
        path: tuple(
            dim // max(part, 1)
            for dim, part in zip(leaves[path].shape, placed[path].shard_shape(leaves[path].shape), strict=True)
        )
        for path in forms
    }


def forms_of(module: Any) -> dict[str, Form]:
    """Returns how the parameters below `module` that are codes are stored, by path."""
    return {path: owner.form for path, owner in storable(module).items() if owner.form is not None}
