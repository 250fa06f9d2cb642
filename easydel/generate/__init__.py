"""Text generation: `model.generate(...)`, by transformers' argument names and with its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from easydel.errors import ArgumentError
from easydel.generate.beam_search import search
from easydel.generate.decoding import decode
from easydel.generate.given import Given, bucketed, read_inputs
from easydel.generate.precompile import compile_programs
from easydel.generate.prompt import Prompt
from easydel.generate.prompt_cache import PromptCache
from easydel.generate.sampling_rules import drawn_seed, make_rules, new_tokens, random_key
from easydel.generate.settings import read_defaults, resolve
from easydel.generate.stopping import Stop, decoder_of
from easydel.generate.streamers import listener
from easydel.inputs import check_params, donations_explained, host_array
from easydel.module import LanguageModel
from easydel.ops.sampling import Rules
from easydel.processes import check_inputs, losses_told
from easydel.tree import flatten

__all__ = ["GenerateOutput", "PromptCache", "compile_ahead", "generate", "read_defaults"]


@dataclass(frozen=True)
class GenerateOutput:
    """`sequences` [batch, length]: prompts as they were given, new tokens, then padding where a row ended early."""

    sequences: np.ndarray
    seed: int | None = None
    """What the tokens were sampled with, given or drawn; None if they were not sampled, or with a key."""
    scores: tuple[np.ndarray, ...] | None = None
    """With `output_scores`, the scores [batch, vocabulary] that each token was chosen by: -inf is out of the choice."""
    sequences_scores: np.ndarray | None = None
    """With several beams, each row's sum of log probabilities, divided by its length to the `length_penalty`."""

    def __getitem__(self, index: Any) -> Any:
        """Returns `sequences[index]`: transformers' `generate` returns the sequences themselves."""
        return self.sequences[index]

    @property
    def logprobs(self) -> np.ndarray:
        """Log probabilities [batch, new tokens] with which the tokens were chosen; needs `output_scores`."""
        if self.scores is None:
            raise ArgumentError("no scores were kept", hint="call generate with output_scores=True")
        scores = np.stack(self.scores, axis=1)
        made = self.sequences[:, self.sequences.shape[1] - scores.shape[1] :, None]
        best = scores.max(axis=-1, keepdims=True)
        total = best + np.log(np.exp(scores - best).sum(axis=-1, keepdims=True))
        return (np.take_along_axis(scores, made, axis=-1) - total)[..., 0]


def generate(
    model: LanguageModel,
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
    """Continues prompts, as `BaseNNXModule.generate` explains."""
    if input_ids is None:
        input_ids = arguments.pop("inputs", None)  # transformers' name of its first argument
    _drop_types(model, arguments)
    given = Given(input_ids, attention_mask, global_attention_mask, decoder_input_ids, decoder_attention_mask)
    run = _prepared(model, given, generation_config, seed, rng, arguments)
    if params is None:
        params = model.params
    else:
        check_params(flatten(model.params), flatten(params))
    if prompt_cache is not None and run.source is not None:
        raise ArgumentError("prompt_cache is for decoder-only models", hint="call generate without it")
    if run.rules.beams is not None:
        return _searched(model, params, run, streamer, prompt_cache)
    stop = _stop(run, tokenizer)
    options: dict[str, Any] = {"stop": stop, "kept": prompt_cache, "chunk": run.chunk}
    with losses_told(), donations_explained(), listener(streamer, run.given_BT) as listen:
        made, scores = decode(model, params, run.prompt, run.source, run.rules, run.new, listen, **options)
    kept = tuple(scores[: made.shape[1]]) if run.rules.scored else None
    return GenerateOutput(np.concatenate([run.given_BT, made], axis=1), run.seed, kept)


def _stop(run: _Run, tokenizer: Any) -> Stop | None:
    if not run.stop_strings:
        return None
    ends = [] if run.rules.eos_E is None else run.rules.eos_E.tolist()
    return Stop(run.stop_strings, decoder_of(tokenizer), ends, len(run.given_BT))


def _drop_types(model: LanguageModel, arguments: dict[str, Any]) -> None:
    """Takes out `token_type_ids` that say nothing: zeros, as tokenizers give them for models without types."""
    types = arguments.get("token_type_ids")
    if types is None or not np.any(host_array("token_type_ids", types)):
        arguments.pop("token_type_ids", None)
        return
    raise ArgumentError(
        "token_type_ids are not implemented in generate", hint="leave them out: all tokens are of type 0"
    )


def _searched(
    model: LanguageModel, params: Mapping[str, Any], run: _Run, streamer: Any, prompt_cache: PromptCache | None
) -> GenerateOutput:
    given = {"streamer": streamer is not None, "prompt_cache": prompt_cache is not None}
    given |= {"stop_strings": bool(run.stop_strings), "output_scores": run.rules.scored}
    if idle := [name for name, is_given in given.items() if is_given]:
        problem = f"{' and '.join(idle)} with several beams, of which only the end tells the best"
        raise ArgumentError(problem, hint="pass num_beams=1, or call generate without it")
    with losses_told(), donations_explained():
        made, scores = search(model, params, run.prompt, run.source, run.rules, run.new, run.returned, run.chunk)
    return GenerateOutput(np.concatenate([run.given_BT.repeat(run.returned, 0), made], axis=1), sequences_scores=scores)


def compile_ahead(
    input_ids: Any,
    attention_mask: Any = None,
    *,
    generation_config: Any = None,
    streamer: Any = None,
    seed: int | None = None,
    rng: jax.Array | None = None,
    tokenizer: Any = None,
    global_attention_mask: Any = None,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
    **arguments: Any,
) -> Callable[[LanguageModel, Mapping[str, Any]], None]:
    """Returns a function for `from_pretrained(while_loading=...)` that compiles the programs of `generate`.

    The arguments are those of `BaseNNXModule.generate`. A later call with as many rows, the same kind of `streamer` and
    prompts of about the same length (in the same bucket: 128, 256, 512, ...) finds all programs compiled.
    """

    def compile_for(model: LanguageModel, shapes: Mapping[str, Any]) -> None:
        given = Given(input_ids, attention_mask, global_attention_mask, decoder_input_ids, decoder_attention_mask)
        run = _prepared(model, given, generation_config, seed, rng, arguments, ahead=True)
        streamed = streamer is not None or _stop(run, tokenizer) is not None or run.rules.scored
        compile_programs(model, shapes, run.prompt, run.source, run.rules, run.new, streamed=streamed)

    return compile_for


@dataclass(frozen=True)
class _Run:
    """The arguments of a call, understood: prompts as given and as computed with, rules, number of new tokens.

    Of a prompt at most `chunk` tokens are read at once. `seed` is None unless tokens are sampled with one. With beams,
    the best `returned` of each prompt are wanted.
    """

    given_BT: np.ndarray
    prompt: Prompt
    source: Prompt | None
    rules: Rules
    new: int
    chunk: int | None
    seed: int | None
    returned: int
    stop_strings: tuple[str, ...] = ()


def _prepared(
    model: LanguageModel,
    given: Given,
    generation_config: Any,
    seed: int | None,
    rng: jax.Array | None,
    arguments: Mapping[str, Any],
    *,
    ahead: bool = False,
) -> _Run:
    """Returns the call that the arguments ask for; `ahead`, one that only its programs are wanted of."""
    settings = resolve(model.generation_config, generation_config, arguments)
    prompt, source = read_inputs(model, settings, given)
    if not ahead:
        read = {f"prompts, {name}": array for name, array in vars(prompt).items()}
        read |= {} if source is None else {f"encoder, {name}": array for name, array in vars(source).items()}
        check_inputs(model.policy.mesh, "generate", {**read, **settings, "seed": seed, "rng": rng})
    new = new_tokens(model, settings, prompt, source)
    if rng is not None or not settings["do_sample"]:
        seed = None
    elif seed is None:
        seed = 0 if ahead else drawn_seed()  # programs take any
    key = random_key(seed, rng) if settings["do_sample"] else None
    given_BT, (prompt, source) = prompt.ids_BT, bucketed(prompt, source)
    rules = make_rules(settings, key, model.record.vocab, source or prompt, length=given_BT.shape[1], new=new)
    chunk, returned = settings["prefill_chunk_size"], settings["num_return_sequences"] or 1
    strings = tuple(settings["stop_strings"] or ())
    return _Run(given_BT, prompt, source, rules, new, chunk, seed, returned, strings)
