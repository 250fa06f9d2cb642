"""The sum of token losses, group by group, computed together with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easydel.policy import Policy
from easydel.train.spread import WHOLE, Leaves, Share, spread
from easydel.tree import Tree, flatten, unflatten

# B batch, D model, V vocabulary, N groups, P tokens of a sequence in one group
IGNORED = -100  # the value that Hugging Face's data collators use where no loss is wanted
Head = Callable[[Tree, jax.Array], jax.Array]
Sums = tuple[jax.Array, jax.Array]


class Saved(NamedTuple):
    """Values that the forward pass leaves for the backward pass: gradients of the objective, float32 by parameters.

    `dtypes` holds a zero in the dtype of each differentiated parameter, `fixed` the paths of the other parameters.
    """

    by_params: Mapping[str, jax.Array]
    by_hidden: jax.Array
    dtypes: Mapping[str, jax.Array]
    fixed: Mapping[str, None]


@dataclass(frozen=True)
class Summed:
    """The sums of objective and negative log likelihood over hidden states [N, B, P, D] and targets [N, B, P].

    Logits exist for one group of tokens at a time, so reverse-mode differentiation would have to compute them again.
    As the objective is a plain sum, its gradient does not depend on later computations: the forward pass computes it
    while the logits exist, and the backward pass only scales it by the gradient of the sum. The negative log likelihood
    has no gradient.

    Parameters of the head may be frozen: a gradient by them would cost a third matrix product and a float32 array as
    large as the vocabulary's matrix. With `symbolic_zeros`, JAX tells the forward pass which arguments are
    differentiated: leaves come as objects with `value` and `perturbed`, and the backward pass returns None for leaves
    that are not perturbed.
    """

    head: Head
    policy: Policy
    rows: int
    z_weight: float

    def differentiable(self) -> Callable[[Tree, jax.Array, jax.Array], Sums]:
        """Returns the function of parameters, hidden states and targets, with the gradient of its first result."""
        summed = jax.custom_vjp(self.value)
        summed.defvjp(self.forward, self.backward, symbolic_zeros=True)
        return summed

    def value(self, params: Tree, hidden_NBPD: jax.Array, targets_NBP: jax.Array) -> Sums:
        """Returns both sums where no gradient is wanted."""

        def sums(share: Share, wanted: Leaves, fixed: Leaves, hidden_NBPD: jax.Array, targets_NBP: jax.Array) -> Any:
            def add(sums: Sums, group: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
                objective, nll, _ = token_losses(self._logits(fixed, group[0]), group[1], self.z_weight, share)
                return (sums[0] + jnp.sum(objective), sums[1] + jnp.sum(nll)), None

            return jax.lax.scan(add, (zero(), zero()), (hidden_NBPD, targets_NBP))[0], {}, None

        return spread(sums, self.policy, self.rows)({}, flatten(params), hidden_NBPD, targets_NBP)[0]

    def forward(self, params: Tree, hidden: Any, targets: Any) -> tuple[Sums, Saved]:
        """Returns both sums, and gradients of the first; each leaf has a `value`, and tells if it is `perturbed`."""
        leaves = flatten(params)
        wanted = {path: leaf.value for path, leaf in leaves.items() if leaf.perturbed}
        fixed = {path: leaf.value for path, leaf in leaves.items() if not leaf.perturbed}

        over_devices = spread(self.gradients, self.policy, self.rows)
        sums, gradients, by_hidden = over_devices(wanted, fixed, hidden.value, targets.value)
        dtypes = {path: jnp.zeros((), leaf.dtype) for path, leaf in wanted.items()}
        return sums, Saved(gradients, by_hidden, dtypes, dict.fromkeys(fixed))

    def gradients(
        self, share: Share, wanted: Leaves, fixed: Leaves, hidden_NBPD: jax.Array, targets_NBP: jax.Array
    ) -> Any:
        """Returns both sums, and the first's gradients: by the parameters `wanted`, in float32, and by hidden states.

        They are those of the vocabulary's `share`, except for the sums.
        """

        def add(carry: Any, group: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            sums, gradients = carry
            logits, back = jax.vjp(lambda own, x: self._logits({**own, **fixed}, x), wanted, group[0])
            objective, nll, by_logits = token_losses(logits, group[1], self.z_weight, share)
            more, by_hidden = back(by_logits.astype(logits.dtype))  # the head's own products run in its dtype
            gradients = {path: gradients[path] + more[path].astype(jnp.float32) for path in gradients}
            return ((sums[0] + jnp.sum(objective), sums[1] + jnp.sum(nll)), gradients), by_hidden

        # float32: thousands of groups may add up
        zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in wanted.items()}
        (sums, gradients), by_hidden = jax.lax.scan(add, ((zero(), zero()), zeros), (hidden_NBPD, targets_NBP))
        return sums, gradients, by_hidden

    def backward(self, saved: Saved, by_sums: Sums) -> tuple[Tree, jax.Array, None]:
        """Returns the gradients of the first sum, times the one by it; None for fixed parameters and for targets."""
        factor = by_sums[0]
        by_params = {path: (factor * own).astype(saved.dtypes[path].dtype) for path, own in saved.by_params.items()}
        by_hidden = (factor * saved.by_hidden).astype(saved.by_hidden.dtype)
        return unflatten({**by_params, **saved.fixed}), by_hidden, None

    def _logits(self, params: Leaves, hidden_BPD: jax.Array) -> jax.Array:
        return self.head(unflatten(params), hidden_BPD)


def token_losses(
    logits: jax.Array, targets: jax.Array, z_weight: float, share: Share = WHOLE
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns objective, negative log likelihood [...], and the first's gradient by `logits` [..., V], in float32.

    `logits` are those of a vocabulary's `share`.
    """
    logits = logits.astype(jnp.float32)  # sums over a vocabulary lose too much in 16 bits
    counts, rows = targets != IGNORED, logits.shape[-1]
    chosen = jnp.arange(rows) + share.first(rows) == targets[..., None]
    known = jnp.where(counts & ((targets < 0) | (targets >= share.all(rows))), jnp.nan, 1.0)
    top = share.max(jnp.max(logits, axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)  # as in logsumexp: an infinite logit makes the loss infinite, not NaN
    # XLA's CPU compiler would fuse the exponentials into their sum, at a tenth of the speed
    weights = jax.lax.optimization_barrier(jnp.exp(logits - top))
    summed = share.sum(jnp.sum(weights, axis=-1))
    total = jnp.log(summed) + top[..., 0]
    nll = jnp.where(counts, (total - share.sum(jnp.sum(jnp.where(chosen, logits, 0), axis=-1))) * known, 0)
    objective = nll + jnp.where(counts, z_weight * total**2, 0)
    gradient = weights * ((1 + 2 * z_weight * total) / summed)[..., None] - chosen
    return objective, nll, jnp.where(counts[..., None], gradient, 0)


def zero() -> jax.Array:
    """Returns a float32 zero even where JAX's own default is float64."""
    return jnp.zeros((), jnp.float32)
