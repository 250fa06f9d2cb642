"""Trains a model that is split over eight devices, and goes on where it was stopped.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/train_sharded.py [MODEL] [TEXT] [OUT]
Stop it at any time and start it again: it continues from its last checkpoint, with the losses of a run without a stop.
"""

import sys

import jax

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.train import Optimization, Schedule, Settings, Trainer

defaults = ["HuggingFaceTB/SmolLM2-135M", "README.md", "tuned"]
name, text, out = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

model, params = AutoEasyDeLModelForCausalLM.from_pretrained(
    name,
    auto_shard_params=True,
    sharding_axis_dims=(1, -1, 2, 1),  # dp, fsdp (all devices that are left), tp, sp
    scan_layers=True,
    remat=True,
    donatable=True,
)
print(model.policy.mesh, jax.tree.leaves(params)[0].sharding)
settings = Settings(steps=20, batch=8, length=64, save_every=5)
trainer = Trainer(
    model, params, Optimization(Schedule(1e-4, "cosine")), text, out, settings, tokenizer=load_tokenizer(name)
)
state = trainer.run()
model.export(f"{out}/model", state.params)  # transformers and vLLM load it
