"""Loads any checkpoint (here perhaps a GGUF file), and writes it as transformers and vLLM read it.

python examples/export.py [MODEL] [OUT]
"""

import sys

import jax.numpy as jnp

from easydel import AutoEasyDeLModelForCausalLM

defaults = ["HuggingFaceTB/SmolLM2-135M-Instruct", "exported"]
name, out = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(name, param_dtype=jnp.bfloat16)
model.export(out)  # config.json, model.safetensors (or shards and an index), tokenizer
print(f"transformers: AutoModelForCausalLM.from_pretrained({out!r}); vLLM: vllm serve {out}")
