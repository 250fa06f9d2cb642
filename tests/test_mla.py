"""Latent attention computed in its two ways, and the size of its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.deepseek_v2 import CASES as DEEPSEEK_V2
from parity import assert_close, make_reference, random_ids

from easydel import AutoEasyDeLModelForCausalLM
from easydel.layers.context import Context
from easydel.layers.mla import MLA
from easydel.layers.norm import RMSNorm
from easydel.layers.rope import Rope
from easydel.policy import Policy
from easydel.quantize import make_int8, quantize_rows
from easydel.tree import bind, flatten, params_of, unflatten

RECORD = MLA(3, 10, 14, 20, Rope(6, interleaved=True), RMSNorm(1e-6), q_rank=9)


def random_layer(*, int8: bool) -> Any:
    layer = RECORD.build(24, Policy())
    rng = np.random.default_rng(5)
    leaves = {path: rng.normal(0, 0.4, leaf.shape) for path, leaf in flatten(params_of(layer)).items()}
    for path in make_int8(layer, None) if int8 else ():
        leaves[path], leaves[f"{path}_scale"] = quantize_rows(leaves[path])
    floats = {path: leaf if leaf.dtype == np.int8 else leaf.astype(np.float32) for path, leaf in leaves.items()}
    bind(layer, unflatten({path: jnp.asarray(leaf) for path, leaf in floats.items()}))
    return layer


@pytest.mark.parametrize("int8", [False, True])
def test_absorbed_kernels_give_what_expanded_keys_and_values_give(int8: bool, monkeypatch: pytest.MonkeyPatch):
    layer, x = random_layer(int8=int8), jnp.asarray(np.random.default_rng(6).normal(size=(2, 7, 24)), jnp.float32)
    valid = jnp.arange(7)[None] >= jnp.asarray([[0], [3]])
    context = Context(jnp.broadcast_to(jnp.arange(7), (2, 7)), valid, valid)
    outputs = []
    for absorbs in (True, False):
        monkeypatch.setattr(MLA, "absorbs", lambda *sizes, absorbs=absorbs: absorbs)
        outputs.append(np.asarray(layer(x, context, None)[0])[np.asarray(valid)])
    np.testing.assert_allclose(*outputs, atol=1e-5 * np.abs(outputs[0]).max())


def test_decoding_absorbs_and_long_prompts_expand():
    deepseek_v3 = MLA(128, 128, 128, 512, Rope(64), RMSNorm(1e-6))
    assert deepseek_v3.absorbs(1, 4096)
    assert not deepseek_v3.absorbs(4096, 4096)


def test_cache_holds_a_latent_and_one_rotated_key_for_each_token():
    cache = RECORD.cache(2, 50, jnp.dtype(jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(cache)) == 2 * 50 * (20 + 6)


def test_int8_decoding_equals_the_int8_forward_pass(tmp_path: Path):
    """Scanned layers, too, which read and write their latents among those of others: here a part of 300 slots."""
    case = DEEPSEEK_V2[1]
    make_reference(case, tmp_path)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, load_in_8bit=True)
    leaves = flatten(params)
    assert leaves["model/layers/1/mlp/experts/gate_proj/kernel"].dtype == jnp.int8
    assert leaves["model/layers/1/self_attn/kv_b_proj/kernel"].dtype == jnp.int8
    assert leaves["model/layers/1/mlp/gate/kernel"].dtype == jnp.float32
    ids = random_ids(case)
    scanned, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, load_in_8bit=True, scan_layers=True)
    for one, slots in ((model, case.length), (scanned, 300)):
        out, steps = one(ids[:, :10], cache=one.init_cache(2, slots)), []
        for token in range(10, case.length):
            out = one(ids[:, token : token + 1], cache=out.cache)
            steps.append(np.asarray(out.logits))
        assert_close(np.concatenate(steps, axis=1), np.asarray(model(ids).logits)[:, 10:])
