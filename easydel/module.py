"""A language model without verbs: modules built from records, with pure, jitted forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary, ref

import jax
import jax.numpy as jnp
from flax import nnx

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ArgumentError
from easydel.forms import BESIDE
from easydel.inputs import check_flags, check_params, donations_explained, token_array
from easydel.layers.linear import Buffer, Exact
from easydel.layers.stack import stacks
from easydel.policy import Policy
from easydel.stored import storable
from easydel.tree import Tree, bind, flatten, of_kind, params_of, replica, splits_of, unflatten, variables_of
from easydel.weights.execute import LoadReport
from easydel.weights.names import Names


@jax.tree_util.register_dataclass
@dataclass
class CausalLMOutput:
    """`logits` [batch, length, vocab]; `cache` after the call, or None.

    `loss` is there if labels were given, `hidden_states` if they were asked for: the first layer's input, and each
    layer's output [batch, length, features]; the last one is what the head reads.
    """

    logits: jax.Array
    cache: Any = None
    loss: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None

    def __getitem__(self, index: int) -> Any:
        """Returns the part with that number among those that are there, in transformers' order."""
        parts = (self.loss, self.logits, self.cache, self.hidden_states)
        return [part for part in parts if part is not None][index]


# Compiled forward passes by model; weak, so that a model's arrays are freed with the model.
_COMPILED: WeakKeyDictionary[nnx.Module, dict[Callable[..., Any], jax.stages.Wrapped]] = WeakKeyDictionary()


IGNORED = -100  # the label that transformers ignores
OPTIONS = "jit_options"  # the attribute of a function that holds its options for `jax.jit`
Function = TypeVar("Function", bound=Callable[..., Any])


def program(*, donate: int | None = None, static: int | None = None) -> Callable[[Function], Function]:
    """Marks a function of a model and arrays with the way in which `LanguageModel.compiled` jits it.

    Argument number `donate` is donated to it, and the function is compiled for each value of argument number `static`.
    Numbers do not count the model.
    """
    options = {"donate_argnums": donate, "static_argnums": static}

    def mark(function: Function) -> Function:
        setattr(function, OPTIONS, {name: number for name, number in options.items() if number is not None})
        return function

    return mark


class LanguageModel(nnx.Module):
    """A model as generation, training, adapters and saving need it: its records, its parameters, its forward pass.

    `model(input_ids)` computes with the model's own parameters, `model.apply(params, input_ids)` with any. `params` (a
    nested dict) shares the arrays of the module. Both calls are jitted inside; under an outer `jax.jit` or `jax.grad`
    they are inlined. Users hold a `BaseNNXModule`, which can also generate and save itself.
    """

    def __init__(
        self, record: Decoder, config: HFConfig, policy: Policy, names: Names | None = None, origin: Path | None = None
    ):
        """Takes the checkpoint's table `names` (for `export`), and the directory or GGUF file that it came from."""
        self.model = record.build(policy)
        self.lm_head = record.head.build(record.features, record.vocab, policy)
        self.record, self.config, self.policy = record, config, policy
        self.names, self.origin = names or Names(), origin
        # loading replaces these by the checkpoint's own, and by the cost of the load
        self.generation_config = HFConfig({})
        self.load_report: LoadReport | None = None
        self.merged = False  # adapters were: the parameters are no longer those of `origin`
        self.tokenizer_origin = origin
        self.layers_in_file: tuple[int, ...] | None = None  # their numbers in `origin`, where they are counted anew

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_nnx_tabulate_id":  # set before it wraps all methods, never to unwrap them after an error
            raise ArgumentError("nnx.tabulate cannot show this model", hint="print(model.describe())")
        super().__setattr__(name, value)

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict: params["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"]."""
        return params_of(self)

    @property
    def buffers(self) -> frozenset[str]:
        """The paths of parameters that are not learned."""
        return frozenset(of_kind(variables_of(self), Buffer))

    @property
    def exact(self) -> frozenset[str]:
        """The paths of learned parameters that loading never rounds."""
        return self.exact_among(variables_of(self))

    def exact_among(self, variables: Mapping[str, nnx.Param]) -> frozenset[str]:
        """Returns the paths of those `variables` of the model that are learned and that loading never rounds."""
        listed = filter(self.names.is_exact, variables)
        return frozenset({*of_kind(variables, Exact), *listed}.difference(of_kind(variables, Buffer)))

    def num_params(self) -> int:
        """Number of values in the parameters.

        A tied embedding counts once. What is beside codes, and buffers, do not count.
        """
        leaves, stored = flatten(self.params), storable(self)
        beside = {f"{path}{end}" for path in stored for end in BESIDE} | self.buffers
        sizes = {path: leaf.size for path, leaf in leaves.items() if path not in beside}
        return sum((sizes | {path: prod(owner.shape) for path, owner in stored.items() if path in sizes}).values())

    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **inputs: Any
    ) -> CausalLMOutput:
        """Returns logits for `input_ids` [batch, length].

        `attention_mask` (same shape) is 0 on padding. Without `position_ids`, positions count attended tokens. `cache`
        (from `init_cache`) carries earlier tokens; ids and masks are then those of the new tokens.
        `segment_ids` (same shape, integers) are for rows that several documents are packed into: tokens see their own
        segment only, and positions start anew in each. A segment begins wherever the id differs from the one before.
        `labels` (same shape) give the mean loss of each token's successor as `loss`; -100 counts not. `inputs_embeds`
        [batch, length, features] take the place of the token vectors: what the model does to them follows (scales,
        positions, norms). `output_hidden_states=True` returns what is between layers.
        """
        return self.apply(self.params, input_ids, attention_mask, position_ids, **inputs)

    def apply(
        self,
        params: Mapping[str, Any],
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        **inputs: Any,
    ) -> CausalLMOutput:
        """Returns the result of `model(...)` with these `params`: a pure function for jax.jit, jax.grad and optax."""
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        sizes = {name: self.record.vocab_of(name) for name in inputs}
        hidden = inputs.pop("output_hidden_states", None)
        check_flags(output_hidden_states=bool(hidden) if hidden is None else hidden)
        given = {name: token_array(name, value, sizes[name]) for name, value in inputs.items() if value is not None}
        with donations_explained():
            return self.compiled(forward_with_hidden if hidden else forward)(params, given)

    def init_cache(self, batch: int, length: int) -> Any:
        """Returns an empty cache for `length` tokens of `batch` sequences. Logits of tokens beyond `length` are NaN."""
        return self.record.cache(batch, length, self.policy)

    def bound(self, params: Mapping[str, Any]) -> Self:
        """Returns a copy of this module's structure around other parameters, for use under a trace."""
        copy = replica(self)
        bind(copy, params)
        return copy

    def compiled(self, function: Callable[..., Any]) -> jax.stages.Wrapped:
        """Returns `jax.jit` of `function(model, ...)` without its first argument, made once per model.

        `program` marks a function with options. It may use the structure of the model, but takes parameters as
        arguments.
        """
        known = _COMPILED.setdefault(self, {})
        if function not in known:
            model = ref(self)  # a strong reference would keep the model alive in the cache

            @wraps(function)
            def call(*args: Any) -> Any:
                return function(model(), *args)

            known[function] = jax.jit(call, **getattr(function, OPTIONS, {}))
        return known[function]

    def forget_compiled(self) -> None:
        """Drops compiled functions after a change of the modules themselves, which shapes alone may not show."""
        _COMPILED.pop(self, None)

    def canonical_paths(self) -> dict[str, list[str]]:
        """Maps each parameter's path to the per-layer paths it stands for: itself, or one for each stacked layer."""
        paths = list(variables_of(self))
        if not self.policy.scan_layers:
            return {path: [path] for path in paths}
        starts = {
            f"{prefix}/{name}/" if name else f"{prefix}/": [f"{prefix}/{layer}/" for layer in layers]
            for prefix, blocks in self.record.layer_stacks.items()
            for name, layers in stacks(blocks).items()
        }
        return {path: _expanded(path, starts) for path in paths}


def _expanded(path: str, starts: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the path with its beginning replaced by each of the beginnings that it stands for."""
    start = next(filter(path.startswith, starts), "")
    return [layer + path.removeprefix(start) for layer in starts.get(start, ("",))]


def _as_split(model: LanguageModel, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """`params` split over the mesh as the model's own are: so are then their gradients, which else may be whole."""
    mesh = model.policy.mesh
    if mesh is None or mesh.size == 1:
        return params
    leaves, splits = flatten(params), splits_of(model)
    known = splits.keys() & leaves.keys()
    return unflatten(leaves | {path: jax.lax.with_sharding_constraint(leaves[path], splits[path]) for path in known})


def forward(model: LanguageModel, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> CausalLMOutput:
    """Returns logits of every token, as a pure function of parameters and inputs."""
    return _forward(model, params, inputs, hidden=False)


def forward_with_hidden(model: LanguageModel, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> CausalLMOutput:
    """Returns what `forward` does, and the values between layers."""
    return _forward(model, params, inputs, hidden=True)


def _forward(
    model: LanguageModel, params: Mapping[str, Any], inputs: Mapping[str, Any], *, hidden: bool
) -> CausalLMOutput:
    inputs = dict(inputs)
    labels_BT = None if model.record.has_encoder else inputs.pop("labels", None)
    check_params(flatten(model.params), flatten(params))
    takes = signature(type(model.model).__call__).parameters
    known = [name for name in takes if name not in ("self", "between")]
    if missing := [name for name in known if takes[name].default is Parameter.empty and name not in inputs]:
        raise ArgumentError(f"{', '.join(missing)} is missing", hint="pass token ids [batch, length]")
    if unknown := sorted(set(inputs) - set(known)):
        raise ArgumentError(f"the model takes no {', '.join(unknown)}", hint=f"it takes {', '.join(known)}")
    own = model.bound(_as_split(model, params))
    between: list[jax.Array] = []
    if hidden:
        if model.record.has_encoder:
            raise ArgumentError("output_hidden_states is not implemented for encoder-decoders")
        inputs["between"] = between
    hidden_BTD, cache = own.model(**inputs)
    logits_BTV = model.record.logits(own.model, own.lm_head, hidden_BTD)
    loss = None if labels_BT is None else next_token_loss(logits_BTV, labels_BT)
    return CausalLMOutput(logits_BTV, cache, loss, tuple(between) or None)


def next_token_loss(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of each token's successor, in float32; labels of `IGNORED` do not count."""
    if labels_BT.shape != logits_BTV.shape[:2]:
        raise ArgumentError(f"labels have shape {labels_BT.shape}, expected {logits_BTV.shape[:2]} as the ids")
    logs_BTV = jax.nn.log_softmax(logits_BTV[:, :-1].astype(jnp.float32))  # transformers' precision here
    next_BT = labels_BT[:, 1:]
    counts_BT = next_BT != IGNORED
    chosen_BT = jnp.take_along_axis(logs_BTV, jnp.where(counts_BT, next_BT, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen_BT * counts_BT) / jnp.sum(counts_BT)
