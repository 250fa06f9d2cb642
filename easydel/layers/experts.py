"""The experts of a layer, of which each device has a share: the tokens travel, or the kernels, whatever is less."""

from __future__ import annotations

import math
from math import gcd
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from easydel.forms import FACTOR, GAIN, ORDER
from easydel.layers.linear import parameter
from easydel.layers.mlp import GLU, MLP
from easydel.ops.exchange import Exchange, added_up, places_for
from easydel.ops.pairs import in_order, permuted, sent
from easydel.ops.ragged import ragged_dot
from easydel.policy import Policy
from easydel.sharding.axes import AxisName, names_in, size_over, without
from easydel.sharding.placement import fit
from easydel.stored import Stored
from easydel.tree import Tree, params_of

# B batch, T length, D model, E experts, K chosen experts of a token, M (token, choice) pairs sorted by expert
# N tokens of a device, or of all that it meets
FEW = 1024  # pairs that are computed at once on every device, whichever of them are its own: a loop would cost more
Weigh = Literal["outputs", "inputs"]


class ExpertLinear(Stored):
    """A Linear for each expert: kernel [experts, out, in], bias [experts, out]."""

    def __init__(self, experts: int, inputs: int, outputs: int, policy: Policy, *, bias: bool):
        self.kernel = parameter((experts, outputs, inputs), policy)
        self.bias = parameter((experts, outputs), policy) if bias else None
        self.adapter_scale = 1.0  # of the product of `lora_A` [experts, r, in] and `lora_B` [experts, out, r], if any

    def sorted_rows(self, leaves: Tree, x_MI: jax.Array, group: Sorted, policy: Policy) -> jax.Array:
        """Returns [M, out]: rows of `x_MI`, each times the kernel of its expert; `leaves` are this module's."""
        precision = policy.precision
        y_MO = ragged_dot(x_MI, self.weight_in(leaves), group.sizes_E, precision, chip=policy.tpu)
        if "lora_A" in leaves:
            low_MR = ragged_dot(x_MI, leaves["lora_A"], group.sizes_E, precision)
            y_MO = y_MO + ragged_dot(low_MR, leaves["lora_B"], group.sizes_E, precision) * self.adapter_scale
        return y_MO + _rows(leaves["bias"], group.expert_M).astype(y_MO.dtype) if "bias" in leaves else y_MO


class Sorted(NamedTuple):
    """Pairs of a token and one of its experts, sorted by expert.

    They have an order, of which `position_M` is the inverse, their experts, and how many each of these has.
    """

    order_M: jax.Array
    position_M: jax.Array
    expert_M: jax.Array
    sizes_E: jax.Array

    @classmethod
    def by_expert(cls, chosen_BTK: jax.Array, experts: int) -> Sorted:
        """Returns the order of all choices; those of no expert (index out of range) come last."""
        flat_M = chosen_BTK.reshape(-1)
        flat_M = jnp.where((flat_M >= 0) & (flat_M < experts), flat_M, experts)
        order_M, position_M, sizes_E = in_order(flat_M, experts)
        return cls(order_M, position_M, flat_M[order_M], sizes_E)


class Split(NamedTuple):
    """The mesh axes of a layer's experts, of the inner and the model's dimension of each, and of the tokens.

    Tokens travel over the axes in `crossed`, on which experts and tokens are both split. `standing` are the others of
    the experts' axes: devices along them have the same tokens.
    """

    mesh: Mesh
    expert: AxisName
    mlp: AxisName
    hidden: AxisName
    tokens: PartitionSpec

    @property
    def crossed(self) -> tuple[str, ...]:
        split = {*names_in(self.tokens[0]), *names_in(self.tokens[1])}
        return tuple(name for name in names_in(self.expert) if name in split)

    @property
    def standing(self) -> tuple[str, ...]:
        return tuple(name for name in names_in(self.expert) if name not in self.crossed)

    def size(self, axes: AxisName) -> int:
        return size_over(names_in(axes), self.mesh)

    def kernel(self, name: str, *, hidden: AxisName = None) -> PartitionSpec:
        """Returns how the kernel of a projection is split."""
        inner = (hidden, self.mlp) if name == "down_proj" else (self.mlp, hidden)
        return PartitionSpec(self.expert, *inner)

    def owner(self, expert_NK: jax.Array, here: int, axes: tuple[str, ...]) -> jax.Array:
        """Returns the number along `axes` of the device that has an expert, if each device has `here` of them."""
        device, number, stride = expert_NK // here, jnp.zeros_like(expert_NK), 1
        places = {}
        for name in reversed(names_in(self.expert)):
            places[name] = device % self.mesh.shape[name]
            device = device // self.mesh.shape[name]
        for name in reversed(axes):
            number, stride = number + places[name] * stride, stride * self.mesh.shape[name]
        return number


class Experts(nnx.Module):
    """`count` copies of `expert`. The router's weights multiply their outputs, or (`weigh`) their inputs.

    Over a mesh, experts that are split stay on their devices, and tokens are sent to them, unless kernels are less to
    send; see `_travels`.
    """

    def __init__(self, count: int, expert: GLU | MLP, features: int, policy: Policy, weigh: Weigh = "outputs"):
        for name in expert.inner:
            setattr(self, name, ExpertLinear(count, features, expert.hidden, policy, bias=expert.bias))
        self.down_proj = ExpertLinear(count, expert.hidden, features, policy, bias=expert.bias)
        self.count, self.expert, self.weigh, self.policy = count, expert, weigh, policy

    def __call__(self, x_BTD: jax.Array, weights_BTK: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        mesh, params = self.policy.mesh, params_of(self)
        if mesh is None or mesh.size == 1:
            return self._mix(params, x_BTD, weights_BTK, chosen_BTK)
        return self._mix_over(self._split(mesh, params, x_BTD), params, x_BTD, weights_BTK, chosen_BTK)

    def _split(self, mesh: Mesh, params: Tree, x_BTD: jax.Array) -> Split:
        axes = self.policy.axes
        # the sizes that may be split: the number of experts, and the inner dimension of each
        expert, mlp = fit((self.count, self._inner(params)), (axes.expert_axis, axes.mlp_axis), mesh)
        hidden = without(axes.hidden_axis, (*names_in(expert), *names_in(mlp)))
        batch, sequence = (without(axis, names_in(mlp)) for axis in (axes.batch_axis, axes.sequence_axis))
        return Split(mesh, expert, mlp, hidden, fit(x_BTD.shape, (batch, sequence, None), mesh))

    def _mix_over(self, split: Split, params: Tree, x_BTD: jax.Array, weights: jax.Array, chosen: jax.Array) -> Any:
        # kernels stored whole (experts that cannot be divided) are cut before the hidden dimension is gathered
        cut = {
            name: leaves | {"kernel": self.policy.shard(leaves["kernel"], *split.kernel(name, hidden=split.hidden))}
            for name, leaves in params.items()
        }
        travel = self._travels(split, params, x_BTD, chosen.shape[-1])
        if travel == "kernels":
            split = split._replace(expert=None)
        specs = {}
        for name, leaves in params.items():
            kernel = split.kernel(name)
            specs[name] = {leaf: _spec(leaf, array.ndim, kernel) for leaf, array in leaves.items()}
            if "lora_A" in leaves:
                specs[name] |= {
                    "lora_A": PartitionSpec(kernel[0], None, kernel[2]),
                    "lora_B": PartitionSpec(*kernel[:2]),
                }

        def local(params: Tree, x_BTD: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
            if split.mlp is not None and "bias" in params["down_proj"]:  # every share of an expert would add it
                first = jax.lax.axis_index(split.mlp) == 0
                params = params | {"down_proj": params["down_proj"] | {"bias": params["down_proj"]["bias"] * first}}
            rows = (array.reshape(-1, array.shape[-1]) for array in (x_BTD.astype(self.policy.dtype), weights, chosen))
            mix = self._exchanged if travel == "pairs" else self._gathered
            return mix(split, params, *rows).reshape(x_BTD.shape)

        tokens = split.tokens
        mapped = jax.shard_map(
            local, mesh=split.mesh, in_specs=(specs, tokens, tokens, tokens), out_specs=tokens, check_vma=False
        )
        return mapped(cut, x_BTD, weights, chosen)

    def _travels(self, split: Split, params: Tree, x_BTD: jax.Array, choices: int) -> str:
        """Returns what is sent between devices: the least of three, in bytes of a forward pass.

        "kernels": each device gets all experts, for its own tokens: of many tokens. "tokens": each device gets the
        tokens of all, and returns a sum for each. "pairs": each token goes to the devices with its experts alone.
        """
        devices = split.size(split.crossed)
        if devices == 1:
            return "tokens"
        tokens = math.prod(x_BTD.shape[:-1]) // split.size((*names_in(split.tokens[0]), *names_in(split.tokens[1])))
        row = 2 * devices * x_BTD.shape[-1] * self.policy.dtype.itemsize  # there and back
        sent = {
            "pairs": row * places_for(tokens * choices / split.size(split.expert)),
            "tokens": row * tokens,
            "kernels": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) // split.size(split.mlp),
        }
        if split.size(split.standing) > 1:  # they would all do the same
            del sent["kernels"]
        return min(sent, key=lambda name: sent[name])

    def _exchanged(
        self, split: Split, params: Tree, x_ND: jax.Array, weights_NK: jax.Array, chosen_NK: jax.Array
    ) -> jax.Array:
        here = params["down_proj"]["kernel"].shape[0]
        queue_NK = jnp.where(
            self._stands(split, chosen_NK, here, split.standing),
            split.owner(chosen_NK, here, split.crossed),
            split.size(split.crossed),
        )
        places = places_for(chosen_NK.size / split.size(split.expert))
        exchange = Exchange(self._rows, split.crossed, tuple(split.mesh.axis_names), places)
        y_ND = exchange(params, x_ND, weights_NK, chosen_NK % here, queue_NK, here)
        return _added_up(y_ND.astype(self.policy.dtype), (*split.standing, *names_in(split.mlp)))

    def _gathered(
        self, split: Split, params: Tree, x_ND: jax.Array, weights_NK: jax.Array, chosen_NK: jax.Array
    ) -> jax.Array:
        here, crossed = params["down_proj"]["kernel"].shape[0], split.crossed
        if crossed:
            x_ND, weights_NK, chosen_NK = (
                jax.lax.all_gather(rows, crossed, axis=0, tiled=True) for rows in (x_ND, weights_NK, chosen_NK)
            )
        if split.size(split.expert) == 1 or chosen_NK.size <= FEW:
            start = 0 if split.expert is None else jax.lax.axis_index(split.expert) * here
            y_ND = self._mix(params, x_ND[None], weights_NK[None], chosen_NK[None] - start)[0]
        else:
            own_NK = self._stands(split, chosen_NK, here, names_in(split.expert))
            places = places_for(chosen_NK.size / split.size(split.expert))
            exchange = Exchange(self._rows, (), (), places)
            y_ND = exchange(params, x_ND, weights_NK, chosen_NK % here, jnp.where(own_NK, 0, 1), here)
            y_ND = y_ND.astype(self.policy.dtype)
        if crossed:
            y_ND = jax.lax.psum_scatter(y_ND, crossed, scatter_dimension=0, tiled=True)
        return _added_up(y_ND, (*split.standing, *names_in(split.mlp)))

    def _stands(self, split: Split, chosen_NK: jax.Array, here: int, axes: tuple[str, ...]) -> jax.Array:
        """Returns whether a choice is an expert, and the device that has it at this one's place along `axes`."""
        exists_NK = (chosen_NK >= 0) & (chosen_NK < self.count)
        return exists_NK & (split.owner(chosen_NK, here, axes) == jax.lax.axis_index(axes)) if axes else exists_NK

    def _rows(self, params: Tree, x_SD: jax.Array, weights_S: jax.Array, expert_S: jax.Array) -> jax.Array:
        """Returns the weighted output of one expert for each row, [S, D]."""
        return self._mix(params, x_SD[None], weights_S[None, :, None], expert_S[None, :, None])[0]

    def _inner(self, params: Tree) -> int:
        """Returns the largest number that divides the inner dimension of all kernels, of their scales and adapters.

        No device then has a part of a block whose rows lie apart. It is 1 if the inputs of the last kernel are in an
        order of their own, which a device could not make.
        """
        if f"kernel{ORDER}" in params["down_proj"]:
            return 1
        found: list[int] = []
        for name, leaves in params.items():
            dim, without = (2, "lora_B") if name == "down_proj" else (1, "lora_A")
            whole = (FACTOR, ORDER, GAIN, without)
            form = getattr(self, name).form
            if form is not None and dim == 1:
                found.append(form.runs(leaves["kernel"].shape[1]))
            found += [leaf.shape[dim] for end, leaf in leaves.items() if leaf.ndim > dim and not end.endswith(whole)]
        return gcd(*found)

    def _mix(self, params: Tree, x_BTD: jax.Array, weights_BTK: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        """Returns the weighted sum of the chosen experts; experts that `params` lacks (index out of range) give 0."""
        experts, choices = params["down_proj"]["kernel"].shape[0], chosen_BTK.shape[-1]
        group = Sorted.by_expert(chosen_BTK, experts)

        def linear(name: str, x_MI: jax.Array) -> jax.Array:
            return getattr(self, name).sorted_rows(params[name], x_MI, group, self.policy)

        order_M, position_M = group.order_M, group.position_M
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(self.policy.dtype)
        x_MD = sent(x_ND, order_M, position_M.reshape(-1, choices))
        if self.weigh == "inputs":
            x_MD = (x_MD * weights_BTK.reshape(-1)[order_M, None]).astype(x_MD.dtype)
        hidden_MF = self.expert.combine(*(linear(name, x_MD) for name in self.expert.inner))
        y_MD = permuted(linear("down_proj", hidden_MF), position_M, order_M)
        y_BTKD = y_MD.reshape(*chosen_BTK.shape, -1)
        if self.weigh == "inputs":
            return jnp.sum(y_BTKD, axis=-2, dtype=jnp.float32).astype(self.policy.dtype)
        # weights are float32, and so is the sum
        return jnp.sum(y_BTKD * weights_BTK[..., None], axis=-2).astype(self.policy.dtype)


def _spec(leaf: str, dims: int, split: PartitionSpec) -> PartitionSpec:
    """Returns the split of an array of a kernel that is split so: some lack dimensions of the kernel."""
    if leaf.endswith((ORDER, GAIN)):
        return PartitionSpec(split[0], split[2])
    return PartitionSpec(*split[:dims])


def _rows(table_EO: jax.Array, expert_M: jax.Array) -> jax.Array:
    return table_EO.at[expert_M].get(mode="fill", fill_value=0)


def _added_up(y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return added_up(y, axes) if axes else y
