"""The model that users hold: a `LanguageModel` that loads, generates, saves and describes itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import jax

from easydel.errors import ArgumentError
from easydel.generate import GenerateOutput, PromptCache, generate
from easydel.hub.upload import upload
from easydel.inputs import check_flags, check_stored
from easydel.lora import save_adapters
from easydel.lora.places import adapted_places
from easydel.module import LanguageModel
from easydel.policy import float_dtype
from easydel.reshaping import resize_vocabulary, to_mesh
from easydel.saving import export, save
from easydel.sharding import PartitionAxis, Rules
from easydel.stored import forms_of
from easydel.tree import Tree, flatten


class BaseNNXModule(LanguageModel):
    """A language model: `model(input_ids)` with its own parameters, `model.apply(params, input_ids)` with any.

    `params` (a nested dict) shares the arrays of the module. Both calls are jitted inside; under an outer `jax.jit` or
    `jax.grad` they are inlined.
    """

    @classmethod
    def from_pretrained(cls, directory: str | Path, **arguments: Any) -> tuple[BaseNNXModule, Tree]:
        """Returns the model that `save_pretrained` wrote to a directory, and its parameters; encoder-decoders as such.

        `arguments` are those of `AutoEasyDeLModelForCausalLM.from_pretrained`, except `from_torch`.
        """
        from easydel.auto import AutoEasyDeLModelForCausalLM  # the one import upwards: it has to build this class

        if "from_torch" in arguments:
            hint = "AutoEasyDeLModelForCausalLM.from_pretrained loads checkpoints of transformers"
            raise ArgumentError("from_torch is always False here", hint=hint)
        return AutoEasyDeLModelForCausalLM.from_pretrained(directory, from_torch=False, **arguments)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        generation_config: Any = None,
        params: Mapping[str, Any] | None = None,
        streamer: Any = None,
        prompt_cache: PromptCache | None = None,
        seed: int | None = None,
        rng: jax.Array | None = None,
        tokenizer: Any = None,
        global_attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        **arguments: Any,
    ) -> GenerateOutput:
        """Continues the prompts `input_ids` [batch, length]; the result's `.sequences` has prompts and new tokens.

        Args:
            attention_mask: 0 on padding, which belongs on the left. Default: 0 on `pad_token_id`, unless that is also
                an end token.
            generation_config: a dict, or transformers' object; takes precedence over the checkpoint's own,
                `self.generation_config`.
            params: parameters to use instead of the model's own.
            streamer: called with the tokens [batch] of each step, or a streamer of transformers (`put`, `end`).
            prompt_cache: a `easydel.generate.PromptCache`: what one conversation computed in earlier calls is not
                computed again.
            seed: of sampling; each row has random numbers of its own, whatever the others are. None draws one, and the
                result's `.seed` says which.
            rng: a key of `jax.random` instead of `seed`.
            tokenizer: what `stop_strings` need: an object with `decode`, ours or one of transformers.
            global_attention_mask: 1 on an encoder's tokens that see all others and are seen by all (LED).
            decoder_input_ids: what an encoder-decoder's answer [batch, length] begins with; the first token is put
                before it unless it is there, and `.sequences` has both.
            decoder_attention_mask: 0 on its padding; by default all of it counts.
            **arguments: transformers' names, which take precedence over `generation_config`: max_new_tokens,
                max_length, min_new_tokens, min_length, do_sample, temperature, top_k, top_p, min_p, repetition_penalty,
                no_repeat_ngram_size, encoder_no_repeat_ngram_size, eos_token_id (one or several), pad_token_id,
                forced_bos_token_id, forced_eos_token_id, decoder_start_token_id, num_return_sequences, num_beams,
                length_penalty, early_stopping, prefill_chunk_size, bad_words_ids, suppress_tokens, stop_strings,
                output_scores, logits_processor (functions of tokens and scores, written in JAX: [batch, slots], a
                number past the vocabulary where there is no token, and [batch, vocabulary]; compiled for each
                function). As in transformers, the default is 20 new tokens, and top_k=50 when sampling; None switches
                an argument off.

        Raises:
            ArgumentError: for names that are unknown, or that are not implemented and would change the result; for
                prompts that are empty, or leave no room.
        """
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
            tokenizer=tokenizer,
            global_attention_mask=global_attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            **arguments,
        )

    def save_pretrained(
        self,
        directory: str | PathLike[str],
        params: Mapping[str, Any] | None = None,
        *,
        allow_nonfinite: bool = False,
    ) -> None:
        """Writes the parameters as they are stored, for `from_pretrained(directory, from_torch=False)`.

        `params` None means the model's own. The directory appears, or is replaced, as a whole. Parameters that are NaN
        or Inf are refused, unless `allow_nonfinite`. If parameters are spread over processes, every process has to call
        this, and the first one writes.
        """
        check_flags(allow_nonfinite=allow_nonfinite)
        save(
            directory,
            self._stored(params),
            self.canonical_paths(),
            self.config,
            forms_of(self),
            origin=self.origin,
            tokenizer=self.tokenizer_origin,
            allow_nonfinite=allow_nonfinite,
        )

    def export(
        self,
        directory: str | PathLike[str],
        params: Mapping[str, Any] | None = None,
        *,
        dtype: Any = None,
        quantized: bool = False,
        allow_nonfinite: bool = False,
    ) -> None:
        """Writes a Hugging Face checkpoint that transformers loads: bit for bit the original where nothing was cast.

        Parameters stored by codes become floats (float32, or `dtype`). If `quantized`, kernels of int8, float8 and
        integers of 2 to 8 bits stay codes, in compressed-tensors' format. `dtype` None keeps each parameter's own
        dtype; buffers and codes always keep theirs. Parameters that are NaN or Inf are refused, unless
        `allow_nonfinite`, and so are numbers that float16 cannot hold. If parameters are spread over processes, every
        process has to call this, and the first one writes.
        """
        check_flags(quantized=quantized, allow_nonfinite=allow_nonfinite)
        export(
            directory,
            self._stored(params),
            self.canonical_paths(),
            self.config,
            self.names,
            forms_of(self),
            fixed=self.buffers,
            origin=self.origin,
            tokenizer=self.tokenizer_origin,
            dtype=None if dtype is None else float_dtype("dtype", dtype),
            quantized=quantized,
            allow_nonfinite=allow_nonfinite,
        )

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh that the parameters are split over, if they are."""
        return self.policy.mesh

    @property
    def dtype(self) -> Any:
        """The dtype of the computation, as the argument of `from_pretrained`."""
        return self.policy.dtype

    @property
    def param_dtype(self) -> Any:
        """The dtype of stored parameters that are floats."""
        return self.policy.param_dtype

    def to(
        self,
        mesh: jax.sharding.Mesh,
        *,
        partition_axis: PartitionAxis | None = None,
        partition_rules: Rules | None = None,
    ) -> Self:
        """Splits the model's parameters over `mesh`, as `auto_shard_params` does, and returns the model.

        Other arrays, such as the `params` that loading returned, stay where they are.
        """
        to_mesh(self, mesh, partition_axis or PartitionAxis(), partition_rules)
        return self

    def resize_token_embeddings(self, rows: int) -> Tree:
        """Gives the vocabulary another size, as for new tokens. Returns the model's parameters.

        New rows, of token vectors and of an untied head, are the mean of the old ones. The config's vocab_size changes
        with them.
        """
        resize_vocabulary(self, rows)
        return self.params

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: Any = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Uploads the model to the Hub, as `export` writes it, and returns the commit's address.

        A model with adapters uploads these, as `easydel.lora.save_adapters` writes them. The repository is created if
        it does not exist, `private` or not; `token` and `revision` (a branch) are huggingface_hub's.
        """
        with TemporaryDirectory() as folder:
            if adapted_places(self):
                save_adapters(self, f"{folder}/out")
            else:
                self.export(f"{folder}/out", dtype=dtype)
            message = commit_message or f"Upload {self.config.get('model_type')} with easydel"
            return upload(
                f"{folder}/out", repo_id, private=private, token=token, revision=revision, commit_message=message
            )

    def _stored(self, params: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Returns the parameters to write: the model's own, or `params` if they fit the model."""
        if params is None:
            return self.params
        check_stored(flatten(self.params), flatten(params))
        return params

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.describe()}"

    def describe(self) -> str:
        """Returns a line per kind of parameter: path with layers as *, shape, dtype, count, and sharding."""
        groups: dict[tuple[str, ...], int] = {}
        for path, leaf in flatten(self.params).items():
            spec = getattr(getattr(leaf, "sharding", None), "spec", "one device")
            row = (re.sub(r"/\d+/", "/*/", path), str(list(leaf.shape)), str(leaf.dtype), str(spec))
            groups[row] = groups.get(row, 0) + 1
        rows = [(*row, f"x {count}") for row, count in groups.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.config.get('model_type')}: {self.num_params():,} parameters", *lines])
