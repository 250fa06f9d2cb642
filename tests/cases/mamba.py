"""Tiny models of mamba."""

from __future__ import annotations

from typing import Any

from cases import Case

SIZES = {"vocab_size": 97, "hidden_size": 48, "state_size": 5, "num_hidden_layers": 3, "time_step_rank": 7}


def recurrent(model_type: str, name: str, **config: Any) -> Case:
    # transformers masks padding before the projection in, whose bias then fills it for the convolution after
    padding_counts = bool(config.get("use_bias"))
    return Case(f"{model_type}-{name}", model_type, SIZES | config, slot_positions=padding_counts)


CASES = [
    recurrent("mamba", "plain"),
    recurrent("mamba", "biased-untied-wide-kernel", use_bias=True, tie_word_embeddings=False, conv_kernel=6),
    recurrent(
        "mamba",
        "no-conv-bias-own-inner-size",
        use_conv_bias=False,
        intermediate_size=56,
        time_step_rank="auto",
        expand=3,
    ),
    Case("mamba-longer-than-a-chunk", "mamba", SIZES | {"hidden_act": "gelu"}, length=70),
]
