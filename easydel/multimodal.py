"""Models of images or sound around a language model: reads the language model, and nothing else, from their files.

transformers keeps the language model's settings in the config's `text_config`. Its tensors are called
language_model.model.layers... on the Hub, and model.language_model.layers... in files of newer versions (some say
text_model).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easydel.config import HFConfig
from easydel.errors import CheckpointError, ConfigError
from easydel.expected import shown
from easydel.keys import Keys
from easydel.weights.names import Names
from easydel.weights.sources import TensorSource

INNER = (
    (r"(language|text)_model\.lm_head\.", "lm_head."),
    (r"(model\.)?(language|text)_model\.(model\.)?", "model."),
)
TextFunction = Callable[[HFConfig], dict[str, Any]]
TensorFunction = Callable[[HFConfig, dict[str, TensorSource]], dict[str, TensorSource]]
TIED = "tie_word_embeddings"
OUTER_FIRST = ("bos_token_id", "eos_token_id", "pad_token_id")  # as in transformers' GenerationConfig.from_model_config


@dataclass(frozen=True)
class Wrapper:
    """One multimodal model_type.

    `text` extracts the language model's keys from the whole config. `ignored` are regular expressions of the names of
    tensors that are not the language model's. Any other tensor without a place in it is an error. `change` gets the
    whole config and the language model's tensors, and returns those to load. `layers` returns the numbers in files of
    the layers to load, if these are not all. `names` is the table of these files, if they have other names and layouts
    than checkpoints of the language model alone.
    """

    model_type: str
    description: str
    text: TextFunction
    ignored: tuple[str, ...]
    change: TensorFunction | None = None
    layers: Callable[[HFConfig], Sequence[int]] | None = None
    names: Names | None = None

    def language_config(self, config: HFConfig) -> HFConfig:
        """Returns the config of the language model alone, as its own checkpoint would have it."""
        return HFConfig(self.text(config), file=config.file)

    def language_tensors(self, config: HFConfig, tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        """Returns the language model's tensors, by their names in a checkpoint of its own."""
        found: dict[str, TensorSource] = {}
        for name, tensor in tensors.items():
            if any(re.fullmatch(pattern, name) for pattern in self.ignored):
                continue
            if (inner := _inner(name)) in found:
                problem = f"is {inner} of the language model, and so is {found[inner].name}"
                raise CheckpointError(problem, file=tensor.file, tensor=name)
            found[inner] = tensor
        return found if self.change is None else self.change(config, found)


def text_config(*, tied: bool | None) -> TextFunction:
    """Returns a function from a config to the keys of its `text_config`, completed. `tied` is as in `completed`."""

    def keys(c: HFConfig) -> dict[str, Any]:
        text = nested(c)
        model_type = text.get("model_type") or Keys.of(c.model_type).nested["text_config"]
        return completed(c, text | {"model_type": model_type}, tied=tied)

    return keys


def nested(c: HFConfig) -> dict[str, Any]:
    """Returns `text_config` unchanged."""
    found = c.get("text_config")
    if not isinstance(found, HFConfig):
        wanted = "an object with the settings of the language model"
        raise ConfigError(f"text_config is {shown(found)}, expected {wanted}", file=c.file)
    return found.to_dict()


def completed(c: HFConfig, text: Mapping[str, Any], *, tied: bool | None = None) -> dict[str, Any]:
    """Returns `text`, which has a model_type, with its class and the keys that transformers takes from outer configs.

    The outer config says whether the head is tied. `tied` is transformers' default if the outer config does not say;
    with None, a head is tied if either config says so.
    """
    if not isinstance(text["model_type"], str):
        raise ConfigError(f"text_config.model_type is {shown(text['model_type'])}, expected a name", file=c.file)
    outer = {key: c[key] for key in OUTER_FIRST if key in c and c[key] is not None}
    stated = c.get(TIED)
    if stated or (stated is None and tied):
        outer[TIED] = True
    elif stated is False and tied is not None:
        outer[TIED] = False
    name = Keys.of(text["model_type"]).causal_lm
    return {**text, **outer, "architectures": [] if name is None else [name]}


def _inner(name: str) -> str:
    for pattern, replacement in INNER:
        if match := re.match(pattern, name):
            return replacement + name[match.end() :]
    return name
