"""Attention whose heads are experts (Shen et al. 2024, arXiv:2404.07413)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from easydel.layers.attention import Attention, AttentionLayer
from easydel.layers.context import Context
from easydel.layers.experts import ExpertLinear, Sorted
from easydel.layers.linear import parameter
from easydel.layers.moe import TopK
from easydel.layers.rope import Rope
from easydel.ops.attend import attend
from easydel.policy import ATTENTION_OUTPUT, Policy
from easydel.sharding.placement import fit
from easydel.tree import Tree, params_of

# B batch, T tokens, D model, N heads, K kv heads, C head channels, G chosen experts, E channels of all heads of one


@dataclass(frozen=True, kw_only=True)
class MixtureOfHeads(Attention):
    """Attention with the queries of the experts that `router` chooses, a head for each kv head, and with their outputs.

    The outputs are weighted as those of other experts, and a bias is added.
    """

    experts: int
    router: TopK

    def build(self, features: int, policy: Policy) -> MixtureOfHeadsLayer:
        return MixtureOfHeadsLayer(self, features, policy)


class MixtureOfHeadsLayer(AttentionLayer):
    def __init__(self, record: MixtureOfHeads, features: int, policy: Policy):
        super().__init__(record, features, policy)
        width = record.heads.kv * record.heads.dim
        self.q_proj: Any = ExpertLinear(record.experts, features, width, policy, bias=False)
        self.o_proj: Any = ExpertLinear(record.experts, width, features, policy, bias=False)
        self.gate = record.router.build(record.experts, features, policy)
        self.bias = parameter((features,), policy)

    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        record, (B, T) = self.record, x_BTD.shape[:2]
        weights_BTG, chosen_BTG = self.gate(x_BTD, context)
        G, K, C = chosen_BTG.shape[-1], record.heads.kv, record.heads.dim
        repeated_BTGD = jnp.broadcast_to(x_BTD[:, :, None], (B, T, G, x_BTD.shape[-1]))
        q_BTGE = self._of_experts("q_proj", repeated_BTGD, chosen_BTG)
        q_BTNC = q_BTGE.reshape(B, T, G, K, C).swapaxes(2, 3).reshape(B, T, K * G, C)
        assert isinstance(record.position, Rope)
        q_BTNC = record.position.rotate(self.policy.shard_heads(q_BTNC), context.angles(record.position))
        seen, cache = self._seen(x_BTD, context, cache)
        scores = self._scores(seen.scores.sight)
        placed: Any = {"mesh": self.policy.mesh, "ring": self.policy.ring}
        out_BTNC = attend(q_BTNC, seen.k_BKSC, seen.v_BKSC, scores, **seen.masks(), **placed)
        out_BTNC = checkpoint_name(self.policy.shard_heads(out_BTNC), ATTENTION_OUTPUT)
        out_BTGE = out_BTNC.reshape(B, T, K, G, C).swapaxes(2, 3).reshape(B, T, G, K * C)
        y_BTGD = self._of_experts("o_proj", out_BTGE, chosen_BTG)
        y_BTD = jnp.sum(y_BTGD * weights_BTG[..., None], axis=-2)  # weights are float32, and so is the sum
        return (y_BTD + self.bias[...].astype(y_BTD.dtype)).astype(self.policy.dtype), cache

    def _of_experts(self, name: str, x_BTGI: jax.Array, chosen_BTG: jax.Array) -> jax.Array:
        """Returns [B, T, G, out]: each of a token's G inputs, times the kernel of the expert that it is for."""
        linear, mesh, axes = getattr(self, name), self.policy.mesh, self.policy.axes

        def local(leaves: Tree, x_BTGI: jax.Array, chosen_BTG: jax.Array) -> jax.Array:
            group = Sorted.by_expert(chosen_BTG, linear.shape[0])
            x_MI = x_BTGI.reshape(-1, x_BTGI.shape[-1]).astype(self.policy.dtype)[group.order_M]
            y_MO = linear.sorted_rows(leaves, x_MI, group, self.policy)
            return y_MO[group.position_M].reshape(*chosen_BTG.shape, -1)

        given = (params_of(linear), x_BTGI, chosen_BTG)
        if mesh is None or mesh.size == 1:
            return local(*given)
        # kernels are gathered, and each device sorts its own tokens
        tokens = fit(chosen_BTG.shape, (axes.batch_axis, axes.sequence_axis, None), mesh)
        specs = (PartitionSpec(), tokens, tokens)
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)(*given)
