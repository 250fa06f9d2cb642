"""Tiny models of gpt-sw3, whose classes are GPT-2's."""

from __future__ import annotations

from cases import case
from cases.gpt2 import SIZES

CASES = [case("gpt-sw3", "plain", SIZES, activation_function="gelu", layer_norm_epsilon=1e-3)]
