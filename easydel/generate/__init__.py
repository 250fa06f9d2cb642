"""Text generation: `model.generate(...)`, by transformers' argument names and with its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from easydel.cache import prompt_bucket
from easydel.encdec import EncoderDecoder
from easydel.errors import ArgumentError
from easydel.generate.decode import decode
from easydel.generate.prompt import Prompt, read_prompt, start_tokens
from easydel.generate.rules import ending, make_rules, new_tokens, random_key
from easydel.generate.settings import Settings, read_defaults, resolve
from easydel.generate.streamers import listener
from easydel.model import BaseNNXModule

__all__ = ["GenerateOutput", "generate", "read_defaults"]


@dataclass(frozen=True)
class GenerateOutput:
    """`sequences` [batch, length]: prompts as they were given, new tokens, then padding where a row ended early."""

    sequences: np.ndarray


def generate(
    model: BaseNNXModule,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    generation_config: Any = None,
    params: Mapping[str, Any] | None = None,
    streamer: Any = None,
    seed: int = 0,
    rng: jax.Array | None = None,
    **arguments: Any,
) -> GenerateOutput:
    """See `BaseNNXModule.generate`."""
    settings = resolve(model.generation_config, generation_config, arguments)
    prompt, source = read_inputs(model, settings, input_ids, attention_mask)
    new = new_tokens(model, settings, prompt, source)
    key = random_key(seed, rng) if settings["do_sample"] else None
    rules = make_rules(settings, key, model.record.vocab, length=prompt.length, new=new)
    params = model.params if params is None else params
    with listener(streamer, prompt.ids_BT) as listen:
        made = decode(model, params, *bucketed(prompt, source), rules, new, listen)
    return GenerateOutput(np.concatenate([prompt.ids_BT, made], axis=1))


def read_inputs(
    model: BaseNNXModule, settings: Settings, input_ids: Any, attention_mask: Any
) -> tuple[Prompt, Prompt | None]:
    """The prompts, or the decoder's first tokens and the encoder's input; each row as often as it is wanted."""
    repeats = settings["num_return_sequences"]
    if repeats > 1 and not settings["do_sample"]:
        raise ArgumentError(f"num_return_sequences={repeats} without sampling", hint="pass do_sample=True")
    record = model.record
    if not isinstance(record, EncoderDecoder):
        ends, pad = ending(settings)
        padding = None if pad in ends else pad  # as in transformers: an end may stand inside of a prompt
        return read_prompt(input_ids, attention_mask, record.vocab, padding).repeated(repeats), None
    source = read_prompt(input_ids, attention_mask, record.vocab, None).repeated(repeats)
    known = (settings["decoder_start_token_id"], settings["bos_token_id"], record.shift.first)
    first = next((token for token in known if token is not None), None)
    if first is None:
        raise ArgumentError("the checkpoint does not say what decoding starts with", hint="pass decoder_start_token_id")
    return start_tokens(first, len(source.ids_BT)), source


def bucketed(prompt: Prompt, source: Prompt | None) -> tuple[Prompt, Prompt | None]:
    """Both at lengths that programs are compiled for; a decoder's first tokens are always one."""
    if source is None:
        return prompt.padded(prompt_bucket(prompt.length)), None
    return prompt, source.extended(prompt_bucket(source.length))
