"""Compares a model in 32, 16 and 8 bits by its perplexity on a text. python examples/perplexity.py [MODEL] [TEXT]"""

import sys

import jax.numpy as jnp

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.train import encoded, evaluator, measured

defaults = ["HuggingFaceTB/SmolLM2-135M", "README.md"]
name, text = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

rows = measured(encoded(text, load_tokenizer(name)), 128)
for title, choices in {
    "float32": {},
    "bfloat16": {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
    "int8": {"load_in_8bit": True},
}.items():
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(name, **choices)
    found = evaluator(model, rows, 2)(params)
    print(f"{title:9} loss {found.loss:.4f} perplexity {found.perplexity:.3f} over {found.tokens} tokens")
