"""The sum of token losses over a mesh: each device sums its own tokens over its own rows of the vocabulary.

The head is gathered once, and the gradient, in float32, moves once. XLA's partitioning would do both for each group of
tokens, in the dtype of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from easydel.ops.scatter import scattered
from easydel.policy import Policy
from easydel.sharding import default_rules
from easydel.sharding.axes import axis_of, names_in, without
from easydel.sharding.placement import fit
from easydel.sharding.rules import spec_for

# B batch, D model, N groups, P tokens of a sequence in one group
Leaves = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Share:
    """One device's rows of a vocabulary, which is split over mesh `axes`; all rows if there are none."""

    axes: tuple[str, ...] = ()

    def first(self, rows: int) -> jax.Array | int:
        """Returns the number of its first row, of `rows` on each device."""
        return jax.lax.axis_index(self.axes) * rows if self.axes else 0

    def all(self, rows: int) -> int:
        """Returns the number of rows of all devices, of `rows` on each."""
        return rows * jax.lax.axis_size(self.axes) if self.axes else rows

    def sum(self, x: Any) -> Any:
        """Returns the sum over the whole vocabulary, from that over this device's rows."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def max(self, x: jax.Array) -> jax.Array:
        """Returns the maximum over the whole vocabulary, from that over this device's rows."""
        return jax.lax.pmax(x, self.axes) if self.axes else x


WHOLE = Share()


def spread(function: Callable[..., Any], policy: Policy, rows: int) -> Callable[..., Any]:
    """Returns the function of all tokens, for a `function` of the tokens and of the vocabulary's share of one device.

    Both map parameters by path, `wanted` and `fixed`, hidden states [N, B, P, D] and targets [N, B, P] to sums over
    tokens, a sum's gradients by `wanted`, and that by hidden states (or None). `rows` is the size of the vocabulary.
    """
    mesh = policy.mesh
    if mesh is None or mesh.size == 1:
        return lambda *arguments: function(WHOLE, *arguments)
    share = Share(names_in(fit((rows,), (policy.axes.vocab_axis,), mesh)[0]))

    def place(path: str, leaf: jax.Array) -> PartitionSpec:
        return PartitionSpec(axis_of(share.axes)) if _by_rows(path, leaf, rows) else PartitionSpec()

    def everywhere(wanted: Leaves, fixed: Leaves, hidden_NBPD: jax.Array, targets_NBP: jax.Array) -> Any:
        batch, sequence = (without(axis, share.axes) for axis in (policy.axes.batch_axis, policy.axes.sequence_axis))
        tokens = fit(targets_NBP.shape, (None, batch, sequence), mesh)
        summed = tuple(name for axis in tokens for name in names_in(axis))
        here = [{path: place(path, leaf) for path, leaf in leaves.items()} for leaves in (wanted, fixed)]
        stored = {path: _split(path, leaf.shape, here[0][path], policy, summed) for path, leaf in wanted.items()}

        def local(*arguments: Any) -> Any:
            sums, gradients, by_hidden = function(share, *arguments)
            added = {
                path: _added(leaf, stored[path], (*summed, *share.axes), here[0][path], mesh)
                for path, leaf in gradients.items()
            }
            return jax.lax.psum(sums, summed) if summed else sums, added, share.sum(by_hidden)

        mapped = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(*here, tokens, tokens),
            out_specs=(PartitionSpec(), stored, tokens),
            check_vma=False,
        )
        return mapped(_narrowed(wanted, policy), _narrowed(fixed, policy), hidden_NBPD, targets_NBP)

    return everywhere


def _by_rows(path: str, leaf: jax.Array, rows: int) -> bool:
    """True if the parameter has a part for each word: those of the head itself, not of a transform before it."""
    parent = path.rpartition("/")[0]
    return parent in ("lm_head", "model/embed_tokens") and leaf.ndim > 0 and leaf.shape[0] == rows


def _split(
    path: str, shape: tuple[int, ...], here: PartitionSpec, policy: Policy, summed: tuple[str, ...]
) -> PartitionSpec:
    """Returns the split of a parameter's gradient: as the parameter's, over axes that gradients are summed over."""
    assert policy.mesh is not None
    usual = fit(shape, spec_for(path, shape, default_rules(policy.axes)), policy.mesh)
    own = [axis_of([name for name in names_in(axis) if name in summed]) for axis in usual]
    return PartitionSpec(*(here[0] if dim == 0 and len(here) and here[0] else axis for dim, axis in enumerate(own)))


def _added(
    gradient: jax.Array, stored: PartitionSpec, summed: tuple[str, ...], here: PartitionSpec, mesh: Mesh
) -> jax.Array:
    """Returns this device's part of a gradient's sum over the mesh axes `summed` that did not split it before."""
    left = [name for name in summed if all(name not in names_in(axis) for axis in here)]
    for dim, axis in enumerate(stored):
        if names := [name for name in names_in(axis) if name in left]:
            gradient = scattered(gradient, names, dim, mesh)
            left = [name for name in left if name not in names]
    return jax.lax.psum(gradient, tuple(left)) if left else gradient


def _narrowed(leaves: Leaves, policy: Policy) -> Leaves:
    """Returns matrices in the dtype that they are multiplied in, so that no more bytes than that are gathered."""
    return {
        path: leaf.astype(policy.dtype)
        if path.endswith(("/kernel", "/embedding")) and jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for path, leaf in leaves.items()
    }
