"""Tiny models of iquestcoder."""

from __future__ import annotations

from cases import case

CASES = [case("iquestcoder", "biased", head_dim=10, attention_bias=True, mlp_bias=True)]
