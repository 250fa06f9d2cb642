"""Greedy tokens equal transformers' for each kind of mixer: states and caches go from step to step in one loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import cases_in
from loaded import Loaded

NEW = 8
# A case each, by its place among those of its type. Plain attention is in test_generate.py.
KINDS = {
    "latent attention": ("deepseek_v2", 0),
    "a window": ("mistral", 0),
    "chunks of attention": ("llama4_text", 0),
    "biases by key": ("doge", 1),
    "decays by channel": ("kimi_linear", 0),
    "Mamba": ("mamba", 0),
    "Mamba 2 beside attention": ("falcon_h1", 0),
    "RG-LRU": ("recurrent_gemma", 0),
    "lightning attention": ("minimax", 0),
    "short convolutions": ("lfm2", 0),
    "RWKV": ("rwkv", 0),
    "xLSTM": ("xlstm", 0),
    "an indexer, whose choice another layer shares": ("glm_moe_dsa", 1),
    "AltUp": ("gemma3n_text", 0),
    "blocks of keys that an indexer chooses": ("minimax_m3_vl_text", 0),
    "hyper-connections and compressed keys": ("deepseek_v4", 0),
    "gated streams, a gated delta rule, n-grams and pooled keys": ("qwen4_exp_text", 1),
    "convolutions that tokens weigh": ("inkling2_text", 1),
    "convolutions in attention": ("zaya", 1),
    "biases that tokens mix": ("inkling_text", 0),
    "stacks of layers in turns": ("hrm_text", 0),
    "experts in attention": ("jetmoe", 0),
    "attention to both towers at once": ("t5gemma2", 0),
    "predictions of two tokens": ("prophetnet", 0),
    "differences of attention": ("diffllama", 0),
    "blocks that layers share, Mamba by heads": ("zamba", 0),
}


@pytest.mark.parametrize("loaded", [cases_in(name)[at] for name, at in KINDS.values()], ids=list(KINDS), indirect=True)
def test_greedy_tokens_equal_transformers(loaded: Loaded):
    arguments: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    arguments["no_repeat_ngram_size"] = 1  # some would repeat one token, whatever is in their caches
    ids, mask = loaded.ids, np.ones_like(loaded.ids)
    theirs = loaded.reference.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **arguments).numpy()
    np.testing.assert_array_equal(loaded.model.generate(ids, **arguments).sequences, theirs)
