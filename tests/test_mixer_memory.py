"""Memory of recurrent mixers: the state of a decode does not grow, and a prompt's temporaries grow as its length."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import all_cases
from trained import described

from easydel.ops.delta import Tokens, delta_rule
from easydel.ops.gated_scan import gated_scan
from easydel.ops.mlstm import Gated, matrix_memory
from easydel.ops.recurrence import CHUNK
from easydel.ops.wkv import weighted_average

# case -> the layers that recur; the others have attention
RECURRENT = {
    "qwen3_5_text-plain": (0, 2),
    "kimi_linear-plain": (0, 2),
    "mamba-plain": (0, 1, 2),
    "mamba2-grouped": (0, 1, 2),
    "recurrent_gemma-wide": (0, 1),
    "minimax-plain": (1,),
    "lfm2-plain": (0, 2),
    "rwkv-rescaled": (0, 1, 2),
    "xlstm-plain": (0, 1, 2),
}
CASES = [case for case in all_cases() if case.name in RECURRENT]


def test_each_of_the_models_is_a_case():
    assert {case.name for case in CASES} == RECURRENT.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_state_of_a_decode_does_not_depend_on_the_length(case: Any):
    blocks = described(case)[0].blocks

    def state(layer: int, length: int) -> Any:
        return jax.eval_shape(lambda: blocks[layer].cache(2, length, jnp.float32))

    for layer in RECURRENT[case.name]:
        assert jax.tree.leaves(state(layer, 100)), f"layer {layer} has a state"
        assert state(layer, 100) == state(layer, 100_000), f"layer {layer}"


def shaped(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def linear_attention(n: int) -> tuple[Any, ...]:
    parts = [shaped(1, n, 2, 8)] * 3
    return (
        lambda q, k, v, decay, state: delta_rule(Tokens(q, k, v, decay, None), state),
        *parts,
        shaped(1, n, 2, 1),
        shaped(1, 2, 8, 8),
    )


def rg_lru(n: int) -> tuple[Any, ...]:
    return gated_scan, shaped(1, n, 16), shaped(1, n, 16), shaped(1, 16)


def rwkv(n: int) -> tuple[Any, ...]:
    return weighted_average, *[shaped(1, n, 16)] * 3, shaped(16), (shaped(1, 16),) * 3


def xlstm(n: int) -> tuple[Any, ...]:
    tokens = Gated(*[shaped(1, n, 2, 8)] * 3, *[shaped(1, n, 2)] * 2)
    return partial(matrix_memory, eps=1e-6), tokens, (shaped(1, 2, 8, 8), shaped(1, 2, 8), shaped(1, 2))


@pytest.mark.parametrize("kind", [linear_attention, rg_lru, rwkv, xlstm], ids=lambda kind: kind.__name__)
def test_temporaries_of_a_prompt_grow_as_its_length(kind: Any):
    """Those of the delta rules, Mamba and Mamba 2 are in their own tests, and attention's are in test_attend."""

    def held(length: int) -> int:
        function, *given = kind(length)
        memory: Any = jax.jit(function).lower(*given).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert held(64 * CHUNK) < 2.3 * held(32 * CHUNK)
