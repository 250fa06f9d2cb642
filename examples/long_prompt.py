"""Reads a long prompt split over devices by its length (the axis sp), and answers.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/long_prompt.py [MODEL] [TEXT]
"""

import sys
from pathlib import Path

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer

defaults = ["HuggingFaceTB/SmolLM2-135M-Instruct", "README.md"]
name, text = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

tokenizer = load_tokenizer(name)
model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(
    name,
    auto_shard_params=True,
    sharding_axis_dims=(1, 1, 1, -1),  # all devices along the sequence
)
request = [{"role": "user", "content": f"{Path(text).read_text()}\n\nIn one sentence, what is this about?"}]
ids = tokenizer.apply_chat_template(request, add_generation_prompt=True)
answer = model.generate([ids], max_new_tokens=32).sequences[0, len(ids) :]
print(f"{len(ids)} tokens read:", tokenizer.decode(answer.tolist()))
