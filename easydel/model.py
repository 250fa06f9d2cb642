"""The model that users hold: a Flax NNX module with pure, jitted forward passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import jax
from flax import nnx

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.errors import ArgumentError
from easydel.inputs import check_flags, check_params, check_stored, donations_explained, token_array
from easydel.layers.stack import stacks
from easydel.policy import Policy, float_dtype
from easydel.tree import Tree, bind, flatten, params_of, replica
from easydel.weights.execute import LoadReport
from easydel.weights.names import Names

if TYPE_CHECKING:
    from easydel.generate import GenerateOutput, PromptCache


@jax.tree_util.register_dataclass
@dataclass
class CausalLMOutput:
    """`logits` [batch, length, vocab]; `cache` as it is after the call, or None."""

    logits: jax.Array
    cache: Any = None


# Compiled forward passes by model; weak, so that a model's arrays go when the model goes.
_COMPILED: WeakKeyDictionary[nnx.Module, dict[Callable[..., Any], jax.stages.Wrapped]] = WeakKeyDictionary()


class BaseNNXModule(nnx.Module):
    """A language model: `model(input_ids)` with its own parameters, `model.apply(params, input_ids)` with any.

    `params` (a nested dict) shares the arrays of the module. Both calls are jitted inside; under an outer `jax.jit` or
    `jax.grad` they are inlined.
    """

    def __init__(
        self, record: Decoder, config: HFConfig, policy: Policy, names: Names | None = None, origin: Path | None = None
    ):
        """`names` is the checkpoint's table (for `export`), `origin` the directory that the model came from."""
        self.model = record.build(policy)
        self.lm_head = record.head.build(record.features, record.vocab, policy)
        self.record, self.config, self.policy = record, config, policy
        self.names, self.origin = names or Names(), origin
        # loading puts the checkpoint's, and what it cost, here
        self.generation_config = HFConfig({})
        self.load_report: LoadReport | None = None

    @property
    def params(self) -> Tree:
        """The parameters as a nested dict: params["model"]["layers"]["0"]["self_attn"]["q_proj"]["kernel"]."""
        return params_of(self)

    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **inputs: Any
    ) -> CausalLMOutput:
        """Logits for `input_ids` [batch, length]. `attention_mask` (same shape) is 0 on padding; without
        `position_ids`, positions count attended tokens. `cache` (from `init_cache`) carries earlier tokens; ids and
        masks are then those of the new ones.

        `segment_ids` (same shape, integers) are for rows that several documents are packed into: tokens see their own
        segment only, positions start anew in each. A segment begins wherever the id is not that of the token before.
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
        """As `model(...)`, with `params` for parameters: a pure function for jax.jit, jax.grad and optax."""
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        vocabulary = self.record.vocab
        given = {name: token_array(name, value, vocabulary) for name, value in inputs.items() if value is not None}
        with donations_explained():
            return self.compiled(forward)(params, given)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        generation_config: Any = None,
        params: Mapping[str, Any] | None = None,
        streamer: Any = None,
        prompt_cache: PromptCache | None = None,
        seed: int = 0,
        rng: jax.Array | None = None,
        **arguments: Any,
    ) -> GenerateOutput:
        """Go on from the prompts `input_ids` [batch, length]; the result's `.sequences` has them and the new tokens.

        Args:
            attention_mask: 0 on padding, which belongs on the left. Default: on `pad_token_id`, unless it is an end.
            generation_config: a dict, or transformers' object; over the checkpoint's own, `self.generation_config`.
            params: parameters to use instead of the model's own.
            streamer: called with the tokens [batch] of each step, or a streamer of transformers (`put`, `end`).
            prompt_cache: a `easydel.generate.PromptCache`: what one conversation computed in earlier calls is not
                computed again.
            seed: of sampling; each row has random numbers of its own, whatever the others are.
            rng: a key of `jax.random` instead of `seed`.
            **arguments: transformers' names, over `generation_config`: max_new_tokens, max_length, min_new_tokens,
                min_length, do_sample, temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size,
                eos_token_id (one or several), pad_token_id, forced_eos_token_id, num_return_sequences,
                prefill_chunk_size. As there, 20 new tokens is the default, and top_k=50 when sampling; None switches
                off.

        Raises:
            ArgumentError: for names that are unknown, or not implemented and not without effect; for prompts that are
                empty, or leave no room.
        """
        from easydel.generate import generate

        return generate(
            self,
            input_ids,
            attention_mask,
            generation_config=generation_config,
            params=params,
            streamer=streamer,
            prompt_cache=prompt_cache,
            seed=seed,
            rng=rng,
            **arguments,
        )

    def init_cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` tokens of `batch` sequences; the logits of those beyond are NaN."""
        return self.record.cache(batch, length, self.policy)

    def num_params(self) -> int:
        """How many numbers the parameters hold; a tied embedding counts once, the scales of int8 parameters do not."""
        return sum(leaf.size for path, leaf in flatten(self.params).items() if not path.endswith("_scale"))

    def save_pretrained(
        self,
        directory: str | PathLike[str],
        params: Mapping[str, Any] | None = None,
        *,
        allow_nonfinite: bool = False,
    ) -> None:
        """Write the parameters as they are stored, for `from_pretrained(directory, from_torch=False)`.

        `params` None means the model's own. The directory appears, or is replaced, whole. Parameters that are NaN or
        Inf are refused, unless `allow_nonfinite`. Of parameters that are spread over processes, each process has to
        call this, and the first one writes.
        """
        from easydel.saving import save

        check_flags(allow_nonfinite=allow_nonfinite)
        save(
            directory,
            self._stored(params),
            self.canonical_paths(),
            self.config,
            origin=self.origin,
            allow_nonfinite=allow_nonfinite,
        )

    def export(
        self,
        directory: str | PathLike[str],
        params: Mapping[str, Any] | None = None,
        *,
        dtype: Any = None,
        allow_nonfinite: bool = False,
    ) -> None:
        """Write a Hugging Face checkpoint that transformers loads: bit for bit the original where nothing was cast.

        int8 parameters are dequantized (to float32, or `dtype`). `dtype` None keeps each parameter's own. Parameters
        that are NaN or Inf are refused, unless `allow_nonfinite`, and so are numbers that float16 cannot hold. Of
        parameters that are spread over processes, each process has to call this, and the first one writes.
        """
        from easydel.saving import export

        check_flags(allow_nonfinite=allow_nonfinite)
        export(
            directory,
            self._stored(params),
            self.canonical_paths(),
            self.config,
            self.names,
            origin=self.origin,
            dtype=None if dtype is None else float_dtype("dtype", dtype),
            allow_nonfinite=allow_nonfinite,
        )

    def _stored(self, params: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """What is to be written: the model's own, or `params` if they fit it."""
        if params is None:
            return self.params
        check_stored(flatten(self.params), flatten(params))
        return params

    def describe(self) -> str:
        """One line per kind of parameter: path with layers as *, shape, dtype, how many, and how they are sharded."""
        groups: dict[tuple[str, ...], int] = {}
        for path, leaf in flatten(self.params).items():
            spec = getattr(getattr(leaf, "sharding", None), "spec", "one device")
            row = (re.sub(r"/\d+/", "/*/", path), str(list(leaf.shape)), str(leaf.dtype), str(spec))
            groups[row] = groups.get(row, 0) + 1
        rows = [(*row, f"x {count}") for row, count in groups.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.config.get('model_type')}: {self.num_params():,} parameters", *lines])

    def bound(self, params: Mapping[str, Any]) -> BaseNNXModule:
        """A copy of this module's structure around other parameters, for use under a trace."""
        copy = replica(self)
        bind(copy, params)
        return copy

    def compiled(self, function: Callable[..., Any], **options: Any) -> jax.stages.Wrapped:
        """`jax.jit` of `function(model, ...)` without its first argument, made once per model.

        `function` may use the structure of the model, but takes parameters as arguments.
        """
        known = _COMPILED.setdefault(self, {})
        if function not in known:
            model = ref(self)  # a strong reference would keep the model alive in the cache

            @wraps(function)
            def call(*args: Any) -> Any:
                return function(model(), *args)

            known[function] = jax.jit(call, **options)
        return known[function]

    def forget_compiled(self) -> None:
        """For when the modules themselves have changed: what was compiled for parameters of the same shapes is old."""
        _COMPILED.pop(self, None)

    def canonical_paths(self) -> dict[str, list[str]]:
        """Each parameter's path -> the per-layer paths it stands for: itself, or one for each stacked layer."""
        paths = list(flatten(self.params))
        if not self.policy.scan_layers:
            return {path: [path] for path in paths}
        starts = {
            f"{prefix}/{name}/" if name else f"{prefix}/": [f"{prefix}/{layer}/" for layer in layers]
            for prefix, blocks in self.record.layer_stacks.items()
            for name, layers in stacks(blocks).items()
        }
        return {path: _expanded(path, starts) for path in paths}


def _expanded(path: str, starts: Mapping[str, Sequence[str]]) -> list[str]:
    """The path with its beginning replaced by each of those that it stands for."""
    start = next(filter(path.startswith, starts), "")
    return [layer + path.removeprefix(start) for layer in starts.get(start, ("",))]


def forward(model: BaseNNXModule, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> CausalLMOutput:
    """Logits of every token, as a pure function of parameters and inputs."""
    check_params(flatten(model.params), flatten(params))
    takes = signature(type(model.model).__call__).parameters
    known = [name for name in takes if name != "self"]
    if missing := [name for name in known if takes[name].default is Parameter.empty and name not in inputs]:
        raise ArgumentError(f"{', '.join(missing)} is missing", hint="pass token ids [batch, length]")
    if unknown := sorted(set(inputs) - set(known)):
        raise ArgumentError(f"the model takes no {', '.join(unknown)}", hint=f"it takes {', '.join(known)}")
    own = model.bound(params)
    hidden, cache = own.model(**inputs)
    return CausalLMOutput(model.record.logits(own.model, own.lm_head, hidden), cache)
