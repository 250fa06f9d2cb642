"""One step of training as a pure function: state and batch in, new state and metrics out.

The trained parameters and the optimizer's moments are donated to each step and updated in place; frozen parameters are
only read. Everything stays split over the mesh as the parameters are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from easydel.errors import ArgumentError
from easydel.inputs import MASKS, check_params, check_tokens
from easydel.lora.dropout import dropout_keys, with_keys
from easydel.module import LanguageModel
from easydel.policy import Policy
from easydel.processes import check_inputs
from easydel.sharding.placement import fit
from easydel.train.loss import DECODED, INPUTS, MARKED, TOKENS, LossSums, loss_sums, targets
from easydel.train.state import Optimizer, State, check_alive
from easydel.train.summed import IGNORED, zero
from easydel.tree import Tree, flatten, unflatten

REQUIRED = ("input_ids", "labels")  # one for each group of equal shapes
Batch = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """Results of one step.

    `loss` is in nats per token (without z-loss), `objective` includes the z-loss, `grad_norm` is the norm of all
    gradients before clipping, and `tokens` is the number of predicted tokens.
    """

    loss: jax.Array
    objective: jax.Array
    grad_norm: jax.Array
    tokens: jax.Array


def step(
    model: LanguageModel,
    optimizer: Optimizer,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    z_weight: float = 0.0,
    tokens: int = TOKENS,
) -> Step:
    """Returns a function from a `State` and a batch to the next `State` and `Metrics`, compiled at its first call.

    Activations are in the model's dtype; gradients, moments and updates are in that of its parameters. So a model
    loaded with dtype=bfloat16 and param_dtype=float32 trains in mixed precision. The model's `remat` decides what the
    backward pass recomputes.

    Args:
        optimizer: an optimizer of `optax`, or any object with such an `init` and `update`.
        accumulate: number of parts in which a batch is computed, one after the other; the loss is the mean over all
            tokens.
        clip: the norm that gradients, taken all together, are scaled down to.
        z_weight: weight of the z-loss, see `loss_sums`.
        tokens: number of tokens whose logits exist at a time on a device, see `loss_sums`.

    Raises:
        ArgumentError: for these arguments, or later for a batch that does not fit.
    """
    for name, value in (("accumulate", accumulate), ("tokens", tokens)):
        check_count(name, value)
    if not z_weight >= 0:
        raise ArgumentError(f"z_weight={z_weight}, expected 0 or more")
    if clip is not None and not clip > 0:
        raise ArgumentError(f"clip={clip}, expected a positive norm, or None")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    structure = model.bound(shapes)  # without arrays, which belong to the state
    return Step(structure, with_keys(structure), optimizer, accumulate, clip, z_weight, tokens)


@dataclass(frozen=True, eq=False)
class Step:
    """The function that `step` returns.

    `step(state, batch)` needs `input_ids` [B, T], and may get `labels` (-100: no loss), `attention_mask`,
    `position_ids` and `segment_ids`. Encoder-decoders need `input_ids` [B, S] and `labels` [B, T], and may get
    `attention_mask`, `position_ids` (LED: `global_attention_mask`), and for their decoder `decoder_input_ids` and
    `decoder_attention_mask`. With several processes, each passes the whole batch.
    """

    model: LanguageModel
    dropping: LanguageModel  # the same, with a place for keys where adapters have dropout
    optimizer: Optimizer
    accumulate: int
    clip: float | None
    z_weight: float
    tokens: int
    _programs: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        check_alive(state, "the arrays of this state", "go on with the state that the step returned")
        trained, moments, count, metrics = self.program(state)(
            state.trained, state.moments, state.count, state.frozen, self.placed(batch)
        )
        return State(trained, state.frozen, moments, count), metrics

    def lower(self, state: State, batch: Batch) -> jax.stages.Lowered:
        """Returns the step's program for such arguments, not compiled yet, for instance to ask for its memory."""
        return self.trace(state, batch).lower()

    def trace(self, state: State, batch: Batch) -> jax.stages.Traced:
        """Returns the step for such arguments before XLA sees it; arrays may be shapes with shardings."""
        shapes = {
            name: jax.ShapeDtypeStruct(array.shape, jnp.int32, sharding=_split(array.shape, self.model.policy))
            for name, array in batch.items()
        }
        return self.program(state).trace(state.trained, state.moments, state.count, state.frozen, shapes)

    def program(self, state: State) -> Any:
        """Returns the jitted step for states that are split like this one; its results are split in the same way."""
        leaves, structure = jax.tree.flatten((state.trained, state.moments, state.count))
        if isinstance(leaves[0], Tracer):
            return self._next  # inside an outer jit
        key = (structure, *(leaf.sharding for leaf in leaves))
        if key not in self._programs:
            check_params(flatten(self.model.params), flatten(state.params))
            split = jax.tree.unflatten(structure, key[1:])
            donated = (0, 1, 2)
            self._programs[key] = jax.jit(self._next, donate_argnums=donated, out_shardings=(*split, None))
        return self._programs[key]

    def placed(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the batch as int32 arrays split over the mesh. ArgumentError for names and shapes that do not fit."""
        groups = self._groups()
        known = [name for group in groups for name in group]
        if unknown := sorted(set(batch) - set(known)):
            raise ArgumentError(f"the batch has {unknown}", hint=f"it may have {', '.join(known)}")
        if missing := [name for name in REQUIRED[: len(groups)] if name not in batch]:
            raise ArgumentError(f"the batch has {sorted(batch)}, and lacks {' and '.join(missing)}")
        arrays = {name: array if isinstance(array, jax.Array) else np.asarray(array) for name, array in batch.items()}
        for name in {*MASKS} & arrays.keys():  # of any dtype, as for the model
            arrays[name] = arrays[name] != 0
        if floats := [name for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.inexact)]:
            raise ArgumentError(f"{', '.join(floats)} of the batch are no integers")
        for group in groups:
            shapes = {name: arrays[name].shape for name in group if name in arrays}
            first = next(iter(shapes.values()))
            if len(first) != 2 or len(set(shapes.values())) > 1 or first[0] != len(arrays["input_ids"]):
                raise ArgumentError(f"the batch has shapes {shapes}, expected [batch, length] for all")
        ids = arrays["input_ids"]
        if not ids.size:
            raise ArgumentError(f"the batch is empty: its shape is {ids.shape}")
        for name in {"input_ids", "decoder_input_ids"} & arrays.keys():
            if isinstance(tokens := arrays[name], np.ndarray):
                check_tokens(name, tokens, self.model.record.vocab_of(name))
        B = len(ids)
        if B % self.accumulate:
            raise ArgumentError(f"{B} sequences cannot be cut into accumulate={self.accumulate} equal parts")
        check_inputs(self.model.policy.mesh, "take a step of training", arrays)
        return {name: placed(array, self.model.policy) for name, array in arrays.items()}

    def _groups(self) -> list[tuple[str, ...]]:
        """Returns the names of a batch's arrays, those of equal shape together."""
        if self.model.record.has_encoder:
            marked = (MARKED,) if self.model.record.marks else ()
            return [(*(name for name in INPUTS if name != "segment_ids"), *marked), DECODED]
        return [(*INPUTS, "labels")]

    def _next(self, trained: Tree, moments: Any, count: jax.Array, frozen: Tree, batch: dict[str, jax.Array]) -> Any:
        gradients, loss = self._gradients(trained, frozen, batch, count)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradients)))
        if self.clip is not None:
            scale = jnp.where(norm > self.clip, self.clip / norm, 1.0)
            gradients = jax.tree.map(lambda leaf: (leaf * scale).astype(leaf.dtype), gradients)
        updates, moments = self.optimizer.update(gradients, moments, trained)
        trained = jax.tree.map(lambda leaf, update: (leaf + update).astype(leaf.dtype), trained, updates)
        tokens = jnp.maximum(loss.tokens, 1)
        return trained, moments, count + 1, Metrics(loss.nll / tokens, loss.objective / tokens, norm, loss.tokens)

    def _gradients(
        self, trained: Tree, frozen: Tree, batch: dict[str, jax.Array], count: jax.Array
    ) -> tuple[Tree, LossSums]:
        """Returns gradients of the mean objective over all tokens of the batch, and its loss."""
        everywhere = jnp.maximum(jnp.sum(targets(self.model, batch) != IGNORED), 1)
        fixed = flatten(frozen)

        def objective(trained: Tree, part: dict[str, jax.Array], number: Any = 0) -> tuple[jax.Array, LossSums]:
            params = unflatten(flatten(trained) | fixed | dropout_keys(self.dropping, count, number))
            loss = loss_sums(self.dropping, params, part, z_weight=self.z_weight, tokens=self.tokens)
            return loss.objective / everywhere, loss

        gradient = jax.grad(objective, has_aux=True)
        if self.accumulate == 1:
            return gradient(trained, batch)

        def add(sums: tuple[Tree, LossSums], part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(trained, *part)), None

        # in float32: many parts may add up
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), trained)
        parts = {name: self._cut(array) for name, array in batch.items()}
        nothing = LossSums(zero(), zero(), zero())
        (gradients, loss), _ = jax.lax.scan(add, (zeros, nothing), (parts, jnp.arange(self.accumulate)))
        return jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), gradients, trained), loss

    def _cut(self, x_BT: jax.Array) -> jax.Array:
        """Cuts into [parts, B, T]; each part has every `accumulate`-th sequence, so that each device keeps its own."""
        policy = self.model.policy
        parts = x_BT.reshape(-1, self.accumulate, x_BT.shape[1]).swapaxes(0, 1)
        return policy.shard(parts, None, policy.axes.batch_axis, policy.axes.sequence_axis)


def placed(array: Any, policy: Policy) -> jax.Array:
    """Returns [batch, length] as int32, split over the mesh. With several processes, each passes the whole."""
    split = None if isinstance(array, Tracer) else _split(array.shape, policy)
    if split is None or isinstance(array, jax.Array):
        tokens = jnp.asarray(array, jnp.int32)
        return tokens if split is None else jax.device_put(tokens, split)
    # device_put would first compare the batches of all processes, which delays each step
    tokens = array.astype(np.int32)
    return jax.make_array_from_callback(tokens.shape, split, tokens.__getitem__)


def _split(shape: tuple[int, ...], policy: Policy) -> NamedSharding | None:
    """Returns the sharding of [batch, length]; None without a mesh."""
    if policy.mesh is None:
        return None
    return NamedSharding(policy.mesh, fit(shape, (policy.axes.batch_axis, policy.axes.sequence_axis), policy.mesh))


def check_count(name: str, value: Any) -> None:
    """Raises ArgumentError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(f"{name}={value!r}, expected at least 1 as a whole number")
