"""Biases by relative position against transformers' T5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from easydel.errors import ConfigError
from easydel.layers.relative import RelativeBias, RelativeBiasTable
from easydel.ops.attend import Around, Scores, attend
from easydel.ops.chunked import CHUNK
from easydel.policy import Policy

HEADS = 3


def tables(buckets: int, farthest: int, *, bidirectional: bool) -> tuple[T5Attention, RelativeBiasTable]:
    """transformers' layer and our table with the same random values."""
    config = T5Config(
        num_heads=HEADS,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=farthest,
        is_decoder=not bidirectional,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    torch.nn.init.normal_(theirs.relative_attention_bias.weight)
    ours = RelativeBias(HEADS, buckets, farthest, bidirectional).build(1, Policy())
    ours.embedding.set_raw_value(jnp.asarray(theirs.relative_attention_bias.weight.detach().numpy()))
    return theirs, ours


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (10, 9), (64, 300)])
def test_biases_equal_transformers(buckets: int, farthest: int, bidirectional: bool):
    theirs, ours = tables(buckets, farthest, bidirectional=bidirectional)
    queries, keys = 150, 170
    expected = theirs.compute_bias(queries, keys, past_seen_tokens=7).detach().numpy()
    np.testing.assert_array_equal(ours(keys, 7)(0, queries), expected)
    np.testing.assert_array_equal(ours(keys, jnp.asarray(7))(jnp.asarray(40), 30), expected[:, :, 40:70])


@pytest.mark.parametrize(("buckets", "farthest"), [(0, 128), (3, 128), (32, 8), (32, 0)])
def test_buckets_that_cannot_be_laid_out_are_refused(buckets: int, farthest: int):
    with pytest.raises(ConfigError, match=f"{buckets} buckets of distances up to {farthest}"):
        RelativeBias(HEADS, buckets, farthest, bidirectional=True)


def test_queries_in_chunks_get_their_own_biases():
    _, table = tables(32, 128, bidirectional=True)
    length = CHUNK + 37
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, length, HEADS, 4)) for key in keys)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = Scores(0.5, sight=Around())
    bias = table(length, 0)
    whole = jnp.einsum("BTNC,BNSC->BNTS", q, k) * 0.5 + bias(0, length)
    expected = jnp.einsum("BNTS,BNSC->BTNC", jax.nn.softmax(whole), v)
    np.testing.assert_allclose(attend(q, k, v, scores, bias=bias), expected, atol=1e-5)
