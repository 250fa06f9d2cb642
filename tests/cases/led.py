"""Tiny models of led, with windows that differ by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cases import Case
from cases.bart import SIZES

LENGTHS = {"max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 24}


def led(name: str, **config: Any) -> Case:
    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    return Case(f"led-{name}", "led", sizes | LENGTHS | config, seq2seq=True)


CASES = [
    led("tied", attention_window=4),
    replace(
        led("untied", attention_window=[4, 8, 4], tie_word_embeddings=False, activation_function="relu"),
        not_exported=("led.shared.weight",),
    ),
]
