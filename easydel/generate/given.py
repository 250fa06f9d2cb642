"""The tokens of a call as they were given, and as programs get them: prompts, or an encoder's input and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from easydel.errors import ArgumentError
from easydel.generate.cache_lengths import prompt_bucket
from easydel.generate.prompt import Prompt, read_prompt
from easydel.generate.sampling_rules import ending
from easydel.generate.settings import GenerateSettings
from easydel.module import LanguageModel


@dataclass(frozen=True)
class Given:
    """The arrays of a call: `decoder_*` begin the answer of an encoder-decoder."""

    input_ids: Any
    attention_mask: Any = None
    global_attention_mask: Any = None
    decoder_input_ids: Any = None
    decoder_attention_mask: Any = None


def read_inputs(model: LanguageModel, settings: GenerateSettings, given: Given) -> tuple[Prompt, Prompt | None]:
    """Returns the prompts, or the decoder's first tokens and the encoder's input; rows are repeated as requested."""
    repeats = settings["num_return_sequences"]
    if (settings["num_beams"] or 1) > 1:
        repeats = 1  # every beam is a row already
    elif repeats > 1 and not settings["do_sample"]:
        raise ArgumentError(
            f"num_return_sequences={repeats} without sampling", hint="pass do_sample=True, or as many num_beams"
        )
    record = model.record
    if given.global_attention_mask is not None and not record.marks:
        raise ArgumentError("the model takes no global_attention_mask", hint="call generate without it")
    vocabulary = record.vocab_of("input_ids")
    if record.has_encoder:
        source = read_prompt(given.input_ids, given.attention_mask, vocabulary, None, given.global_attention_mask)
        begun = _begun(given, len(source.ids_BT), record.vocab_of(record.fed), _first_token(model, settings))
        return begun.repeated(repeats), source.repeated(repeats)
    if given.decoder_input_ids is not None or given.decoder_attention_mask is not None:
        raise ArgumentError("decoder_input_ids are for encoder-decoders", hint="pass the prompts as input_ids")
    ends, pad = ending(settings)
    padding = None if pad in ends else pad  # as in transformers: an end token may be part of a prompt
    return read_prompt(given.input_ids, given.attention_mask, vocabulary, padding).repeated(repeats), None


def _first_token(model: LanguageModel, settings: GenerateSettings) -> int:
    known = (settings["decoder_start_token_id"], settings["bos_token_id"], model.record.first_token)
    first = next((token for token in known if token is not None), None)
    if first is None:
        raise ArgumentError("the checkpoint does not say what decoding starts with", hint="pass decoder_start_token_id")
    return first


def _begun(given: Given, rows: int, vocabulary: int, first: int) -> Prompt:
    """Returns what the decoder begins with: `first`, and then the tokens given, unless some row has `first` already.

    As in transformers: all of them are attended without a mask, and `first` is put before all rows or none.
    """
    start = Prompt(np.full((rows, 1), first, np.int32), np.ones((rows, 1), bool))
    if given.decoder_input_ids is None:
        if given.decoder_attention_mask is not None:
            raise ArgumentError("decoder_attention_mask without decoder_input_ids", hint="call generate without it")
        return start
    names = ("decoder_input_ids", "decoder_attention_mask")
    begun = read_prompt(given.decoder_input_ids, given.decoder_attention_mask, vocabulary, None, names=names)
    if len(begun.ids_BT) != rows:
        raise ArgumentError(f"decoder_input_ids have {len(begun.ids_BT)} rows, but input_ids {rows}")
    if (begun.ids_BT[:, 0] == first).any():
        return begun
    ids_BT, attended_BT = (
        np.concatenate(pair, axis=1) for pair in ((start.ids_BT, begun.ids_BT), (start.attended_BT, begun.attended_BT))
    )
    return Prompt(ids_BT, attended_BT)


def bucketed(prompt: Prompt, source: Prompt | None) -> tuple[Prompt, Prompt | None]:
    """Returns both padded on the left to lengths that programs are compiled for; a single first token stays alone.

    What is on the right of an encoder's input stays: BigBird's last block is that of the longest row.
    """
    if source is not None:
        source = source.preceded(prompt_bucket(source.length))
    if source is None or prompt.length > 1:
        prompt = prompt.padded(prompt_bucket(prompt.length))
    return prompt, source
