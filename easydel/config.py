"""A Hugging Face config.json, read key by key, with a record of what was read.

Peers break silently in two places: a key that changes the computation and that nobody reads, and the two forms of the
rotary settings (`rope_theta` and `rope_scaling` at top level until 2025, one `rope_parameters` since). Here the first
is an error (`HFConfig.check_consumed`), and the second is normalised in one place (`HFConfig.rope`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from easydel.checkpoint.strict import parse_json
from easydel.errors import ArgumentError, ConfigError, listed

# Keys that do not change what an inference or training step without dropout computes.
INERT = re.compile(
    r"""_.*|.*dropout.*|.*_drop|.*pdrop|drop_path.*|layerdrop|.*layerdrop|initializer.*|.*_init|init_.*|.*init_std|init_device
    |embedding_initializer_range|torch_dtype|dtype|transformers_version|architectures|model_type|auto_map|use_cache
    |output_.*|return_dict|return_dict_in_generate|gradient_checkpointing|tokenizer_class|task_specific_params|finetuning_task
    |problem_type|id2label|label2id|num_labels|summary_.*|torchscript|pruned_heads|chunk_size_feed_forward|prefix|name_or_path
    |.*_token_id|.*_token_index|pad_idx|keys_to_ignore_at_inference|pretraining_tp|slow_but_exact|skip_bias_add.*|tp_parallel
    |is_decoder|is_encoder_decoder|add_cross_attention|cross_attention_hidden_size|cross_attention_frequency
    |tie_encoder_decoder|tie_weights_|classifier_.*|use_bfloat16|tf_legacy_loss|unsloth.*|router_aux_loss.*
    |router_z_loss.*|router_jitter_noise|input_jitter_noise|output_router_logits|aux_loss_.*|seq_aux|n_positions_original
    |max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_k|top_p
    |typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids
    |num_return_sequences|forced_.*|remove_invalid_values|exponential_decay_length_penalty|suppress_tokens
    |begin_suppress_tokens|attn_implementation|use_flash_attn.*|flash_attn.*|use_mambapy|use_associative_scan|ep_size
    |gradient_.*|rescale_prenorm_residual|time_step_init_scheme|time_step_scale|time_step_min|time_step_max|time_step_floor
    |original_.*_config|resid_pdrop|summary.*|scale_fmt|transformers.*|cache_implementation|model_max_length|vocab_file|rope_interleaved_note""",
    re.VERBOSE,
)
# Values with which a feature is off, or does nothing.
NEUTRAL: tuple[Any, ...] = (None, False, 0, "", [], {}, 1.0)
BOUND = re.compile(r"softcap|clip|window")  # in keys of limits: of those, 1 is one as any other number
# What `HFConfig.rope` reads.
ROPE_KEYS = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
# Settings at top level that are not looked at where `rope_parameters` states them.
ROPE_FALLBACKS = ("rope_theta", "partial_rotary_factor", "rope_local_base_freq")
# What each of the rotary settings has to be, whichever type uses them.
ROPE_NUMBERS = re.compile(
    r"rope_theta|factor|(low|high)_freq_factor|attention_factor|partial_rotary_factor|beta_(fast|slow)"
    r"|original_max_position_embeddings|mscale(_all_dim)?"
)
ROPE_LISTS = ("short_factor", "long_factor")
MAX_CONFIG_BYTES = 8 << 20
MAX_CONFIG_ITEMS = 500_000  # some list a name for each of 100,000 labels
MAX_SIZE = 1 << 31
SIZE = re.compile(
    r"(num|n)_[a-z_]*(layers?|heads?|experts?|experts_per_tok|embd|inner)|[a-z_]*(hidden|vocab|intermediate|state)_size|[a-z_]*head_dim|d_model|n_layer|n_head"
)


# Sizes of which a model needs at least one.
POSITIVE = re.compile(
    r"(num|n)_[a-z_]*attention_heads|num_heads|n_heads?|hidden_size|vocab_size|d_model|n_embd|n_layers?|num_(hidden_)?layers"
)
SWITCH = re.compile(r"is_encoder_decoder|tie_word_embeddings")
NUMBER = re.compile(r"[a-z_]*(eps|epsilon|theta|softcapping|multiplier|max_position_embeddings|n_positions|base_freq)")
LAYERS = re.compile(r"(num|n)_(hidden_|encoder_|decoder_)?layers?|(encoder|decoder)_layers")


class HFConfig:
    """The keys of a config.json as attributes; remembers which were read.

    `defaults` are used for keys the file lacks, `aliases` are other spellings of a key ("hidden_size": "n_embd").
    Reading a key that neither has is a `ConfigError`; `get` takes a default. Nested dicts are HFConfigs again.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        file: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
        path: str = "",
    ):
        self._values = dict(values)
        self._file = file
        self._defaults = dict(defaults or {})
        self._aliases = dict(aliases or {})
        self._path = path
        self._read: set[str] = set()
        self._nested: dict[str, HFConfig] = {}

    @classmethod
    def from_file(cls, file: Path) -> HFConfig:
        """Read `file`; a ConfigError says what is wrong with it."""
        try:
            if not file.exists():
                raise ConfigError("no such file", file=file, hint="a model directory needs a config.json")
            if not file.is_file():
                raise ConfigError("is not a regular file", file=file)
            if file.stat().st_size > MAX_CONFIG_BYTES:
                raise ConfigError(f"{file.stat().st_size} bytes is too large for a config", file=file)
            values, repeats = parse_json(file.read_bytes(), MAX_CONFIG_ITEMS)
        except ConfigError:
            raise
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror or error}", file=file) from None
        except ValueError as error:
            raise ConfigError(f"not valid JSON ({error})", file=file) from None
        if twice := [shown(repeat.key) for repeat in repeats if not repeat.equal]:
            raise ConfigError(f"has keys twice, with different values: {', '.join(twice[:8])}", file=file)
        if not isinstance(values, dict):
            raise ConfigError(f"holds a {type(values).__name__}, expected an object", file=file)
        return cls(values, file=file)

    def for_family(
        self, defaults: Mapping[str, Any], aliases: Mapping[str, str], overrides: Mapping[str, Any]
    ) -> HFConfig:
        """The same config with a family's defaults and spellings, `overrides` on top, and nothing read yet.

        An override of a rotary setting also changes `rope_parameters`, which would hide it. ArgumentError if it cannot.
        """
        values = _with_rope_overrides({**self._values, **overrides}, aliases, overrides)
        return HFConfig(values, file=self._file, defaults=defaults, aliases=aliases)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        found, value = self._find(key)
        if not found:
            name = f"{self._path}{key}"
            raise ConfigError(
                f"key {name!r} is missing", file=self._file, hint="pass it in config_kwargs or mend the file"
            )
        if value is None and POSITIVE.fullmatch(key):
            raise ConfigError(f"{self._path}{key} is null, expected a whole number", file=self._file)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        found, value = self._find(key)
        return value if found and value is not None else default

    def _find(self, key: str) -> tuple[bool, Any]:
        for name in (key, self._aliases.get(key, key)):
            self._read.add(name)
            if name in self._values:
                return True, self._checked(name, self._values[name])
        for name in (key, self._aliases.get(key, key)):
            if name in self._defaults:
                return True, self._defaults[name]
        return False, None

    def _checked(self, key: str, value: Any) -> Any:
        if value is not None and (expected := expectation(key, value, self._default(key))):
            raise ConfigError(f"{self._path}{key} is {shown(value)}, expected {expected}", file=self._file)
        if isinstance(value, dict):
            nested = HFConfig(value, file=self._file, path=f"{self._path}{key}.")
            return self._nested.setdefault(key, nested)
        return value

    def _default(self, key: str) -> Any:
        """What the family has for `key`, in whichever spelling."""
        ours = next((ours for ours, theirs in self._aliases.items() if theirs == key), key)
        return self._defaults.get(key, self._defaults.get(ours))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    @property
    def file(self) -> Path | None:
        return self._file

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(self._values))

    def unread(self) -> dict[str, Any]:
        """Keys that were not read, whose value is not neutral and that could change the computation."""
        own = {
            f"{self._path}{key}": value
            for key, value in self._values.items()
            if key not in self._read and not INERT.fullmatch(key) and not _is_neutral(key, value)
        }
        for key, nested in self._nested.items():
            if key in self._read:
                own |= nested.unread()
        return own

    def sizes(self) -> Iterator[tuple[str, int, bool]]:
        """(key, value, whether it counts layers) of each size that the file or an override states."""
        for key, value in self._values.items():
            if isinstance(value, dict):
                yield from HFConfig(value, path=f"{self._path}{key}.").sizes()
            elif _is_whole(value) and (SIZE.fullmatch(key) or LAYERS.fullmatch(key)):
                yield f"{self._path}{key}", value, LAYERS.fullmatch(key) is not None

    def rope(
        self, layer_type: str | None = None, *, theta: float = 10000.0, default: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Rotary settings as one flat dict: `rope_type`, `rope_theta`, and what the type needs, from either form.

        `layer_type` picks an entry where `rope_parameters` is nested by layer type. `theta` is the family's default,
        `default` its settings where the config has none in either form.
        """
        found = self.get("rope_parameters") or self.get("rope_scaling") or {}
        if not isinstance(found, HFConfig | dict):
            raise ConfigError(f"rope_parameters or rope_scaling is {shown(found)}, expected an object", file=self._file)
        settings = found.to_dict() if isinstance(found, HFConfig) else dict(found)
        top = {"rope_theta": self.get("rope_theta"), "partial_rotary_factor": self.get("partial_rotary_factor")}
        original = self.get("original_max_position_embeddings")
        if isinstance(found, HFConfig):
            found._read.update(settings)  # Rope.from_settings refuses what it does not honour
        if _is_by_layer(settings):
            settings = dict(settings.get(layer_type or "full_attention") or {})
        stated = {key: value for key, value in top.items() if value is not None}
        settings = stated | settings if found else dict(default or {}) | stated
        settings["rope_type"] = settings.get("rope_type") or settings.pop("type", None) or "default"
        settings.pop("type", None)
        if settings["rope_type"] == "su":  # as the first Phi-3 files called it
            settings["rope_type"] = "longrope"
        if settings.get("rope_theta") is None:
            settings["rope_theta"] = theta
        if settings["rope_type"] in ("llama3", "yarn", "longrope"):
            if original is not None:
                settings["original_max_position_embeddings"] = original
            elif settings.get("original_max_position_embeddings") is None:
                settings["original_max_position_embeddings"] = self.max_position_embeddings
        settings["max_position_embeddings"] = self.get("max_position_embeddings")
        problems = [problem for key, value in settings.items() if (problem := _rope_problem(key, value))]
        low, high = settings.get("low_freq_factor"), settings.get("high_freq_factor")
        if not problems and low is not None and high is not None and low >= high:
            problems.append(f"low_freq_factor is {low}, expected less than high_freq_factor, {high}")
        if problems:
            raise ConfigError(f"its rotary settings make no sense:{listed(problems)}", file=self._file)
        return settings


def expectation(key: str, value: Any, default: Any) -> str | None:
    """What `key` should have been, if `value` cannot be meant: by its name and the type of the default."""
    if SIZE.fullmatch(key) or LAYERS.fullmatch(key):
        least = 1 if POSITIVE.fullmatch(key) or LAYERS.fullmatch(key) else 0
        fits = _is_whole(value) and least <= value < MAX_SIZE
        return None if fits else f"a whole number from {least} to 2**31"
    if SWITCH.fullmatch(key):
        return None if isinstance(value, bool) else "true or false"
    if NUMBER.fullmatch(key) or type(default) in (int, float):
        fits = _is_number(value) and not (value < 0 and NUMBER.fullmatch(key))
        if fits and key.endswith(("max_position_embeddings", "n_positions")) and value >= MAX_SIZE:
            return "a number below 2**31"
        return None if fits else f"a {'non-negative ' if NUMBER.fullmatch(key) else ''}number"
    if default is not None and not isinstance(value, type(default)):
        return {bool: "true or false", str: "a string", list: "a list", dict: "an object"}.get(type(default))
    return None


def shown(value: Any) -> str:
    """`value` for a message, cut to what fits into a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _with_rope_overrides(
    values: dict[str, Any], aliases: Mapping[str, str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """`values`, in whose `rope_parameters` or `rope_scaling` a setting that is stated there is the overridden one."""
    form = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    settings = values.get(form)
    spellings = [(key, name) for key in ROPE_FALLBACKS for name in (aliases.get(key, key), key)]
    given = {key: overrides[name] for key, name in spellings if overrides.get(name) is not None}
    if not given or not isinstance(settings, Mapping):
        return values
    asked = ", ".join(f"{key}={shown(value)}" for key, value in given.items())
    if _is_by_layer(settings):
        problem = f"{asked} does not say for which layers, and {form} has settings for {' and '.join(settings)}"
        raise ArgumentError(problem, hint=f"pass {form}={{...}} with those of each")
    stated = {key: value for key, value in given.items() if key in settings}
    if form in overrides and any(settings[key] not in (None, value) for key, value in stated.items()):
        raise ArgumentError(f"{asked} contradicts {form}={shown(settings)}", hint=f"pass {form}={{...}} alone")
    return values | {form: {**settings, **stated}}


def _is_by_layer(settings: Mapping[str, Any]) -> bool:
    """Whether these are rotary settings for each type of layers, in place of some for all."""
    return bool(settings) and all(isinstance(entry, dict) or entry is None for entry in settings.values())


def _rope_problem(key: str, value: Any) -> str | None:
    if value is None:
        return None
    if key == "rope_type" and not isinstance(value, str):
        return f"rope_type is {shown(value)}, expected a string"
    if key.startswith("mscale") and value == 0:  # as if it were not there
        return None
    if ROPE_NUMBERS.fullmatch(key) and not (_is_number(value) and value > 0):
        return f"{key} is {shown(value)}, expected a positive number"
    if key in ROPE_LISTS and not (isinstance(value, list) and all(_is_number(item) and item > 0 for item in value)):
        return f"{key} is {shown(value)}, expected a list of positive numbers"
    return None


def _is_neutral(key: str, value: Any) -> bool:
    """Whether what the key is about is off with that value, or does nothing."""
    return value is not True and value in NEUTRAL and not (value == 1 and BOUND.search(key))


def _is_number(value: Any) -> TypeGuard[int | float]:
    """A finite int or float; JSON as Python reads it has NaN and Infinity, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38 and math.isfinite(value)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
