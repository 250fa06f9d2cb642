"""Mixtures of experts: a router chooses a few feed-forwards for each token (Shazeer et al. 2017, arXiv:1701.06538)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from easydel.errors import ConfigError
from easydel.forms import FACTOR, GAIN, ORDER
from easydel.layers.context import Context
from easydel.layers.linear import Float32Linear, Linear, buffer, contract, parameter
from easydel.layers.mlp import GLU, MLP
from easydel.layers.part import Handed, Part, handing, received
from easydel.ops.ragged import ragged_dot
from easydel.policy import Policy
from easydel.sharding.axes import AxisName, axis_of, names_in
from easydel.sharding.placement import fit
from easydel.stored import Stored
from easydel.tree import Tree, params_of

# B batch, T length, D model, E experts, K chosen experts of a token, M (token, choice) pairs sorted by expert


@dataclass(frozen=True)
class Groups:
    """`count` equal groups of experts, of which only the `kept` best can be chosen from.

    A group's score is the sum of its `best` highest scores (DeepSeek-V2, arXiv:2405.04434: 1; V3, arXiv:2412.19437: 2).
    Experts of other groups get the score `outside`.
    """

    count: int
    kept: int
    best: int = 1
    outside: float = -jnp.inf

    def limit(self, scores_BTE: jax.Array) -> jax.Array:
        """Returns the scores, with `outside` for experts of the other groups."""
        grouped = scores_BTE.reshape(*scores_BTE.shape[:-1], self.count, -1)
        worth = jnp.sum(jax.lax.top_k(grouped, self.best)[0], axis=-1)
        _, kept = jax.lax.top_k(worth, self.kept)
        keep = jnp.any(kept[..., None] == jnp.arange(self.count), axis=-2)
        return jnp.where(keep[..., None], grouped, self.outside).reshape(scores_BTE.shape)


class Router:
    """A record of the choice of experts.

    It builds a module of (x [B, T, D], context) that returns weights and indices of the chosen experts, [B, T, K] each,
    perhaps as `Handed`, with values for later layers.
    A weight of 0 leaves an expert out, as does an index beyond the experts; no token is left out unless a router says
    so.
    """

    def build(self, experts: int, features: int, policy: Policy) -> Any:
        """Returns the module, with parameters that have no values yet."""
        raise NotImplementedError(type(self).__name__)

    def check(self, experts: int) -> None:
        """Raises ConfigError if the router cannot choose among that many experts."""

    def reads(self) -> Iterable[str]:
        """Lists fields of the context that the router reads, as `Part.reads` does: hash routers read ids_BT."""
        return ()

    def hands_on(self) -> Iterable[str]:
        """Lists the names of the values that the router hands on, as `Part.hands_on` does."""
        return ()


@dataclass(frozen=True)
class TopK(Router):
    """The `k` experts with the highest scores, weighted by them.

    `renormalize` makes the weights sum to 1, then `scale` multiplies them. If `corrected`, a learned bias per expert
    counts in the choice but not in the weights (DeepSeek-V3); a `bias` is part of the scores (GPT-OSS). `floor` is
    added to the sum that `renormalize` divides by: sigmoids can all be zero.
    """

    k: int
    renormalize: bool = False
    scale: float = 1.0
    score: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    corrected: bool = False
    groups: Groups | None = None
    bias: bool = False
    floor: float = 1e-20

    def build(self, experts: int, features: int, policy: Policy) -> Gate:
        return Gate(self, experts, features, policy)

    def check(self, experts: int) -> None:
        """Raises ConfigError if the router cannot choose among that many experts."""
        groups = self.groups or Groups(1, 1)
        size = experts // groups.count if groups.count else 0
        if not (size * groups.count == experts and 0 < groups.kept <= groups.count and groups.best <= size):
            raise ConfigError(f"{experts} experts cannot stand in {groups}")
        if not 0 < self.k <= size * groups.kept:
            raise ConfigError(f"{self.k} of {size * groups.kept} experts cannot be chosen")

    def choose(self, logits_BTE: jax.Array, correction_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns weights and indices of the chosen experts, [B, T, K] each, from float32 logits."""
        scores = self.scores(logits_BTE)
        eligible = scores if correction_E is None else scores + correction_E
        if self.groups is not None:
            eligible = self.groups.limit(eligible)
        _, chosen_BTK = jax.lax.top_k(eligible, self.k)
        return self.weights(scores, chosen_BTK), chosen_BTK

    def scores(self, logits_BTE: jax.Array) -> jax.Array:
        """Returns how well each expert fits."""
        if self.score == "sqrtsoftplus":
            return jnp.sqrt(jax.nn.softplus(logits_BTE))
        return jax.nn.softmax(logits_BTE) if self.score == "softmax" else jax.nn.sigmoid(logits_BTE)

    def weights(self, scores_BTE: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        """Returns the weights of the chosen experts, [B, T, K]."""
        weights_BTK = jnp.take_along_axis(scores_BTE, chosen_BTK, axis=-1)
        if self.renormalize:
            weights_BTK = weights_BTK / (jnp.sum(weights_BTK, axis=-1, keepdims=True) + self.floor)
        return weights_BTK * self.scale


@dataclass(frozen=True)
class MoE(Part):
    """`experts` copies of `expert`, among which `router` chooses; `shared` acts on every token.

    The router's weights multiply the experts' outputs, or (`weigh`) their inputs (Llama 4). With `shared_gate` the
    shared expert's output is multiplied by the sigmoid of a learned projection (Qwen2-MoE). Beyond the experts, `zero`
    more can be chosen that return their input (LongCat). With `latent` features the experts, but not the router, work
    on a projection of that width (Nemotron-H).
    """

    experts: int
    expert: GLU | MLP
    router: Router
    shared: Part | None = None
    shared_gate: bool = False
    weigh: Literal["outputs", "inputs"] = "outputs"
    zero: int = 0
    latent: int | None = None

    def __post_init__(self):
        assert self.expert.norm is None, "experts are computed together, without norms between"
        assert self.weigh == "outputs" or self.zero == 0, "an expert that returns its input has no weighted input"
        self.router.check(self.experts + self.zero)

    def build(self, features: int, policy: Policy) -> MoELayer:
        return MoELayer(self, features, policy)

    def reads(self) -> Iterable[str]:
        return self.router.reads()

    def hands_on(self) -> Iterable[str]:
        return self.router.hands_on()


class MoELayer(nnx.Module):
    def __init__(self, record: MoE, features: int, policy: Policy):
        self.gate = record.router.build(record.experts + record.zero, features, policy)
        inner = record.latent or features
        self.latent_in_proj = Linear(features, inner, policy) if record.latent else None
        self.experts = Experts(record, inner, policy)
        self.latent_out_proj = Linear(inner, features, policy) if record.latent else None
        self.shared_expert = None if record.shared is None else record.shared.build(features, policy)
        self.shared_expert_gate = Float32Linear(features, 1, policy) if record.shared_gate else None
        self.record = record

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array | Handed, Any]:
        (weights_BTK, chosen_BTK), values = received(self.gate(x_BTD, context))
        inputs_BTD = x_BTD if self.latent_in_proj is None else self.latent_in_proj(x_BTD)
        y_BTD = self.experts(inputs_BTD, weights_BTK, chosen_BTK)
        if self.record.zero:
            kept_BT1 = jnp.sum(weights_BTK * (chosen_BTK >= self.record.experts), axis=-1, keepdims=True)
            y_BTD = y_BTD + (inputs_BTD * kept_BT1).astype(y_BTD.dtype)
        if self.latent_out_proj is not None:
            y_BTD = self.latent_out_proj(y_BTD)
        if self.shared_expert is None:
            return handing(y_BTD, values), cache
        shared, _ = self.shared_expert(x_BTD, context, None)
        if self.shared_expert_gate is not None:
            shared = shared * jax.nn.sigmoid(self.shared_expert_gate(x_BTD)).astype(shared.dtype)
        return handing(y_BTD + shared, values), cache


class Gate(nnx.Module):
    """The router's parameters: `kernel` [experts, features], perhaps `bias` and `correction_bias` [experts].

    They are never quantized. The correction, which balances the experts' load, is never cast to 16 bits either:
    rounding would change which experts are chosen.
    """

    def __init__(self, router: TopK, experts: int, features: int, policy: Policy):
        self.kernel = parameter((experts, features), policy)
        self.bias = parameter((experts,), policy) if router.bias else None
        self.correction_bias = buffer((experts,), jnp.float32) if router.corrected else None
        self.router, self.policy = router, replace(policy, dtype=jnp.dtype(jnp.float32))

    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Returns weights and indices of the chosen experts, [B, T, K] each."""
        logits_BTE = contract(x_BTD, self.kernel[...], self.policy)
        if self.bias is not None:
            logits_BTE = logits_BTE + self.bias[...].astype(logits_BTE.dtype)
        return self.router.choose(logits_BTE, None if self.correction_bias is None else self.correction_bias[...])


class ExpertLinear(Stored):
    """A Linear for each expert: kernel [experts, out, in], bias [experts, out]."""

    def __init__(self, experts: int, inputs: int, outputs: int, policy: Policy, *, bias: bool):
        self.kernel = parameter((experts, outputs, inputs), policy)
        self.bias = parameter((experts, outputs), policy) if bias else None
        self.adapter_scale = 1.0  # of the product of `lora_A` [experts, r, in] and `lora_B` [experts, out, r], if any

    def sorted_rows(self, leaves: Tree, x_MI: jax.Array, group: Sorted, precision: Any) -> jax.Array:
        """Returns [M, out]: rows of `x_MI`, each times the kernel of its expert; `leaves` are this module's."""
        y_MO = ragged_dot(x_MI, self.weight_in(leaves), group.sizes_E, precision)
        if "lora_A" in leaves:
            low_MR = ragged_dot(x_MI, leaves["lora_A"], group.sizes_E, precision)
            y_MO = y_MO + ragged_dot(low_MR, leaves["lora_B"], group.sizes_E, precision) * self.adapter_scale
        return y_MO + _rows(leaves["bias"], group.expert_M).astype(y_MO.dtype) if "bias" in leaves else y_MO


class Sorted(NamedTuple):
    """Pairs of a token and one of its experts, sorted by expert: their `order_M`, experts, and how many each has."""

    order_M: jax.Array
    expert_M: jax.Array
    sizes_E: jax.Array

    @classmethod
    def by_expert(cls, chosen_BTK: jax.Array, experts: int) -> Sorted:
        """Returns the order of all choices; those of no expert (index out of range) come last."""
        flat_M = chosen_BTK.reshape(-1)
        flat_M = jnp.where((flat_M >= 0) & (flat_M < experts), flat_M, experts)
        order_M = jnp.argsort(flat_M)
        return cls(order_M, flat_M[order_M], jnp.bincount(flat_M, length=experts + 1)[:experts])


class Experts(nnx.Module):
    """All experts of a layer. Over a mesh, each device applies its share of the experts to its tokens."""

    def __init__(self, record: MoE, features: int, policy: Policy):
        count, hidden, bias = record.experts, record.expert.hidden, record.expert.bias
        for name in record.expert.inner:
            setattr(self, name, ExpertLinear(count, features, hidden, policy, bias=bias))
        self.down_proj = ExpertLinear(count, hidden, features, policy, bias=bias)
        self.record, self.policy = record, policy

    def __call__(self, x_BTD: jax.Array, weights_BTK: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        mesh, params = self.policy.mesh, params_of(self)
        if mesh is None or mesh.size == 1:
            return self._mix(params, x_BTD, weights_BTK, chosen_BTK)
        return self._mix_over(mesh, params, x_BTD, weights_BTK, chosen_BTK)

    def _mix_over(self, mesh: Mesh, params: Tree, x_BTD: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
        axes, record = self.policy.axes, self.record
        # the sizes that may be split: the number of experts, and the inner dimension of each
        expert, mlp = fit((record.experts, self._inner(params)), (axes.expert_axis, axes.mlp_axis), mesh)
        summed = (*names_in(expert), *names_in(mlp))
        split_otherwise = (axes.batch_axis, axes.sequence_axis, axes.hidden_axis)
        batch, sequence, hidden = (_without(axis, summed) for axis in split_otherwise)
        tokens = fit(x_BTD.shape, (batch, sequence, None), mesh)
        specs, cut = {}, {}
        for name, leaves in params.items():
            stored = (expert, hidden, mlp) if name == "down_proj" else (expert, mlp, hidden)
            split = PartitionSpec(expert, None, mlp) if name == "down_proj" else PartitionSpec(expert, mlp, None)
            specs[name] = {leaf: _spec(leaf, array.ndim, split) for leaf, array in leaves.items()}
            if "lora_A" in leaves:
                specs[name] |= {"lora_A": PartitionSpec(expert, None, split[2]), "lora_B": PartitionSpec(*split[:2])}
            # kernels stored whole (experts that cannot be divided) are cut before the hidden dimension is gathered
            cut[name] = leaves | {"kernel": self.policy.shard(leaves["kernel"], *stored)}

        def local(params: Tree, x_BTD: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
            if mlp is not None and "bias" in params["down_proj"]:  # every share of an expert would add it
                first = jax.lax.axis_index(mlp) == 0
                params = params | {"down_proj": params["down_proj"] | {"bias": params["down_proj"]["bias"] * first}}
            start = 0 if expert is None else jax.lax.axis_index(expert) * params["down_proj"]["kernel"].shape[0]
            y_BTD = self._mix(params, x_BTD, weights, chosen - start)
            return jax.lax.psum(y_BTD, summed) if summed else y_BTD

        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(specs, tokens, tokens, tokens), out_specs=tokens, check_vma=False
        )
        return mapped(cut, x_BTD, weights, chosen)

    def _inner(self, params: Tree) -> int:
        """Returns the largest number that divides the inner dimension of all kernels and of their scales.

        It is 1 if the inputs of the last kernel are in an order of their own, which a device could not make.
        """
        if f"kernel{ORDER}" in params["down_proj"]:
            return 1
        dims = {"down_proj": 2}
        return gcd(
            *(
                leaf.shape[dims.get(name, 1)]
                for name, leaves in params.items()
                for end, leaf in leaves.items()
                if leaf.ndim > dims.get(name, 1) and not end.endswith((FACTOR, ORDER, GAIN))
            )
        )

    def _mix(self, params: Tree, x_BTD: jax.Array, weights_BTK: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        """Returns the weighted sum of the chosen experts; experts that `params` lacks (index out of range) give 0."""
        experts, choices = params["down_proj"]["kernel"].shape[0], chosen_BTK.shape[-1]
        group = Sorted.by_expert(chosen_BTK, experts)

        def linear(name: str, x_MI: jax.Array) -> jax.Array:
            return getattr(self, name).sorted_rows(params[name], x_MI, group, self.policy.precision)

        order_M = group.order_M
        x_MD = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(self.policy.dtype)[order_M // choices]
        if self.record.weigh == "inputs":
            x_MD = (x_MD * weights_BTK.reshape(-1)[order_M, None]).astype(x_MD.dtype)
        hidden_MF = self.record.expert.combine(*(linear(name, x_MD) for name in self.record.expert.inner))
        y_MD = linear("down_proj", hidden_MF)[jnp.argsort(order_M)]
        y_BTKD = y_MD.reshape(*chosen_BTK.shape, -1)
        if self.record.weigh == "inputs":
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


def _without(axis: AxisName, names: tuple[str, ...]) -> AxisName:
    return axis_of([name for name in names_in(axis) if name not in names])
