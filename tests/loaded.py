"""A tiny model as transformers made it and as we loaded it, with inputs for both and the expected logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case
from parity import (
    Inputs,
    logits_of,
    padded_mask,
    random_ids,
    reference_cached_logits,
    reference_logits,
    reference_rows,
)

from easydel import AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM, BaseNNXModule
from easydel.tree import Tree

STEPS = 3  # tokens that cached decoding takes one by one
TARGETS = 9  # length of what an encoder-decoder decodes


@dataclass
class Loaded:
    case: Case
    directory: Path
    reference: Any
    model: BaseNNXModule
    params: Tree

    @property
    def ids(self) -> np.ndarray:
        return self.inputs["input_ids"]

    @property
    def fed(self) -> str:
        """The name of the tokens that are decoded: each of them has logits."""
        return "decoder_input_ids" if self.case.seq2seq else "input_ids"

    @property
    def mask_name(self) -> str:
        return self.fed.replace("input_ids", "attention_mask")

    @property
    def mask(self) -> np.ndarray:
        """1 where `padded` has logits that are defined."""
        return self.padded[self.mask_name]

    @property
    def start(self) -> int:
        """How many tokens go into a cache at once before single ones follow."""
        return self.inputs[self.fed].shape[1] - STEPS

    @cached_property
    def inputs(self) -> Inputs:
        inputs = {"input_ids": random_ids(self.case)}
        return (
            inputs | {"decoder_input_ids": random_ids(self.case, length=TARGETS, seed=1)}
            if self.case.seq2seq
            else inputs
        )

    @cached_property
    def padded(self) -> Inputs:
        """The inputs with masks: the first row whole, the second padded on the left."""
        inputs = self.inputs | {"attention_mask": padded_mask(*self.ids.shape)}
        if self.case.seq2seq:
            inputs |= {"decoder_attention_mask": padded_mask(*self.inputs[self.fed].shape, step=2)}
        return inputs

    @cached_property
    def logits(self) -> np.ndarray:
        """transformers' logits of `inputs`."""
        return logits_of(self.reference, **self.inputs)

    @cached_property
    def padded_logits(self) -> np.ndarray:
        """transformers' logits of `padded`, all tokens at once; they count where `mask` is 1."""
        if self.case.seq2seq or self.case.slot_positions:
            return reference_rows(self.reference, self.fed, self.padded)
        return reference_logits(self.reference, self.ids, self.mask)

    @cached_property
    def cached_logits(self) -> np.ndarray:
        """What a cached decode of `padded` gives: `padded_logits`, unless what comes later changes what came before."""
        if self.case.growing_rope:
            return reference_cached_logits(self.reference, self.ids, self.mask, self.start)
        return self.padded_logits

    def decoded(self, model: BaseNNXModule, params: Tree, **given: Any) -> np.ndarray:
        """Our logits of `padded` with what is `given`, or without it if None: of the first tokens, then one by one."""
        inputs: dict[str, Any] = {name: value for name, value in (self.padded | given).items() if value is not None}
        tokens = inputs[self.fed]
        begun = {name: inputs[name][:, : self.start] for name in {self.fed, self.mask_name} & inputs.keys()}
        out = model.apply(params, **(inputs | begun), cache=model.init_cache(len(tokens), tokens.shape[1] + 3))
        steps = [np.asarray(out.logits)]
        for token in range(self.start, tokens.shape[1]):
            out = model.apply(params, **{self.fed: tokens[:, token : token + 1]}, cache=out.cache)
            steps.append(np.asarray(out.logits))
        return np.concatenate(steps, axis=1)

    def again(self, **choices: Any) -> tuple[BaseNNXModule, Tree]:
        """The same files loaded otherwise."""
        return load_from(self.case, self.directory, **choices)


def load(case: Case, directory: Path, make: Callable[[Any, Path], Any]) -> Loaded:
    reference = make(case, directory)
    return Loaded(case, directory, reference, *load_from(case, directory))


def load_from(case: Case, directory: Path, **choices: Any) -> tuple[BaseNNXModule, Tree]:
    auto = AutoEasyDeLModelForSeq2SeqLM if case.seq2seq else AutoEasyDeLModelForCausalLM
    return auto.from_pretrained(directory, **choices)
