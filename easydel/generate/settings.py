"""The settings of a call of `generate`: its arguments, else the checkpoint's, else transformers' defaults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from easydel.config import HFConfig
from easydel.errors import ArgumentError, listed

FILE = "generation_config.json"
GenerateSettings = dict[str, Any]


def _names(text: str) -> list[str]:
    return text.split()


# As in GenerationConfig._get_default_generation_params of transformers 5.23.
DEFAULTS: GenerateSettings = {
    "max_new_tokens": None,
    "max_length": None,
    "min_new_tokens": None,
    "min_length": 0,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "decoder_start_token_id": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "prefill_chunk_size": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "stop_strings": None,
    "logits_processor": None,
    "output_scores": False,
}
# Names that change the result, and their values that do not; None and false values never do.
REFUSED: Mapping[str, Any] = {
    **dict.fromkeys(("num_beam_groups", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(
        _names(
            """penalty_alpha dola_layers constraints force_words_ids max_time use_mtp
            sequence_bias exponential_decay_length_penalty begin_suppress_tokens token_healing
            watermarking_config remove_invalid_values prompt_lookup_num_tokens
            assistant_early_exit assistant_model speculation_type stopping_criteria
            prefix_allowed_tokens_fn custom_generate inputs_embeds negative_prompt_ids negative_prompt_attention_mask
            past_key_values position_ids output_attentions output_hidden_states output_logits"""
        )
    ),
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")  # greedy decoding uses none of them, whatever they are
REFUSED_WHEN_SAMPLING: Mapping[str, Any] = {"typical_p": 1, "top_h": None, "epsilon_cutoff": None, "eta_cutoff": None}
# Names without an effect on the tokens, given that groups of beams and assistants are refused.
WITHOUT_EFFECT = frozenset(
    _names(
        """diversity_penalty low_memory use_cache cache_implementation cache_config
        max_cache_len renormalize_logits return_dict_in_generate is_assistant num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind assistant_ensemble_weight
        target_lookbehind max_matching_ngram_size compile_config disable_compile continuous_batching_config
        synced_gpus transformers_version"""
    )
)
JSON = bool | int | float | str | list | dict
KNOWN = {*DEFAULTS, *REFUSED, *REFUSED_WHEN_SAMPLING, *WITHOUT_EFFECT}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_tokens(value: Any) -> bool:
    return all(map(_is_whole, value)) if isinstance(value, list) else _is_whole(value)


def _is_list(value: Any, fits: Callable[[Any], Any], *, empty: bool = False) -> bool:
    return isinstance(value, list) and (empty or bool(value)) and all(map(fits, value))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) or callable(value) else value


Check = tuple[Callable[[Any], bool], str]
_POSITIVE: Check = (lambda value: _is_whole(value) and value > 0, "a whole number above 0")
_COUNT: Check = (lambda value: _is_whole(value) and value >= 0, "a whole number, not below 0")
_SHARE: Check = (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_FACTOR: Check = (lambda value: _is_number(value) and 0 < value < float("inf"), "a number above 0")
# In some files a negative number means no token.
_TOKEN: Check = (_is_whole, "a token's number")
CHECKS: Mapping[str, Check] = {
    "max_new_tokens": _POSITIVE,
    "max_length": _POSITIVE,
    "min_new_tokens": _COUNT,
    "min_length": _COUNT,
    "do_sample": (lambda value: isinstance(value, bool), "True or False"),
    "temperature": (_FACTOR[0], "a number above 0 (do_sample=False takes the likeliest token)"),
    "top_k": _COUNT,
    "top_p": _SHARE,
    "min_p": _SHARE,
    "repetition_penalty": _FACTOR,
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "num_return_sequences": _POSITIVE,
    "num_beams": _POSITIVE,
    "length_penalty": (lambda value: _is_number(value) and abs(value) < float("inf"), "a number"),
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", 'True, False or "never"'),
    "prefill_chunk_size": _POSITIVE,
    "bad_words_ids": (lambda value: _is_list(value, lambda word: _is_list(word, _is_whole)), "lists of tokens"),
    "suppress_tokens": (lambda value: _is_list(value, _is_whole, empty=True), "a list of tokens"),
    "stop_strings": (lambda value: _is_list(_listed(value), lambda one: isinstance(one, str) and one), "texts"),
    "logits_processor": (lambda value: _is_list(_listed(value), callable), "functions of tokens and scores"),
    "output_scores": (lambda value: isinstance(value, bool), "True or False"),
    "eos_token_id": (_are_tokens, "a token's number, or a list of them"),
    **dict.fromkeys([name for name in DEFAULTS if name.endswith("_token_id") and name != "eos_token_id"], _TOKEN),
}


def read_defaults(directory: Path | None, config: HFConfig, *, own: bool) -> HFConfig:
    """Returns generation_config.json in `directory`, else the settings in `config`.

    The settings of `config` count if there is no such file, or if the weights have their `own` config. As in
    transformers, what it leaves open may stand in its decoder's config.
    """
    if not own and directory is not None and os.path.lexists(directory / FILE):
        return HFConfig.from_file(directory / FILE)
    inner = config.get("decoder")
    inside = dict(inner) if isinstance(inner, HFConfig) else {}
    stated = {name: value for name, value in dict(config).items() if value is not None or name not in inside}
    return HFConfig({name: value for name, value in (inside | stated).items() if name in KNOWN}, file=config.file)


def resolve(defaults: HFConfig, generation_config: Any, arguments: Mapping[str, Any]) -> GenerateSettings:
    """Returns a value for each name in DEFAULTS. ArgumentError lists all that are unknown, unsupported or senseless.

    In `defaults` and `generation_config` None means not given; in `arguments` it switches a setting off.
    """
    given = {name: _plain(value) for name, value in (_as_mapping(generation_config) | dict(arguments)).items()}
    inherited = {name: value for name, value in dict(defaults).items() if name in KNOWN and value is not None}
    values = DEFAULTS | inherited | given
    problems = [f"{name} is not known{_similar(name)}" for name in given if name not in KNOWN]
    problems += _unsupported(values, given)
    for name, (fits, expected) in CHECKS.items():
        used = values["do_sample"] or name not in SAMPLING
        if used and values[name] is not None and not fits(values[name]):
            problems.append(f"{_spelled(name, values, given)}, expected {expected}")
    if problems:
        raise ArgumentError(f"generate cannot do this:{listed(problems)}")
    listed_values = {name: _listed(values[name]) for name in ("stop_strings", "logits_processor")}
    return {name: values[name] for name in DEFAULTS} | listed_values


def _unsupported(values: GenerateSettings, given: GenerateSettings) -> list[str]:
    refused = {**REFUSED, **(REFUSED_WHEN_SAMPLING if values["do_sample"] is True else {})}
    problems = []
    for name, neutral in refused.items():
        value = values.get(name)
        if value is None or (isinstance(value, JSON) and (not value or value == neutral)):
            continue
        without = "" if name in given else f"; pass {name}={neutral} to go without"
        problems.append(f"{_spelled(name, values, given)} is not implemented{without}")
    return problems


def _spelled(name: str, values: GenerateSettings, given: GenerateSettings) -> str:
    return f"{name}={values[name]!r}"[:200] + ("" if name in given else " (the checkpoint's default)")


def _similar(name: str) -> str:
    close = difflib.get_close_matches(
        name, [*DEFAULTS, "attention_mask", "generation_config", "streamer", "seed", "tokenizer"], 1
    )
    return f" (did you mean {close[0]}?)" if close else ""


def _as_mapping(generation_config: Any) -> GenerateSettings:
    if generation_config is None:
        return {}
    if hasattr(generation_config, "to_dict"):
        generation_config = generation_config.to_dict()
    if not isinstance(generation_config, Mapping):
        found = type(generation_config).__name__
        raise ArgumentError(f"generation_config is a {found}, expected a dict or an object with to_dict")
    items = generation_config.items()
    return {name: value for name, value in items if value is not None and not str(name).startswith("_")}


def _plain(value: Any) -> Any:
    """Returns numbers of NumPy and JAX, and sequences, as Python's own."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value
