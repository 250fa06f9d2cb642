"""Trains adapters of an 8-bit model on conversations, and asks the result. For LoRA on 4 bits, pass a model in 4 bits.

python examples/finetune_chat.py [MODEL] [CHATS] [OUT]
CHATS has a conversation in each line: {"messages": [{"role": "user", "content": ...}, ...]}
"""

import sys

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.lora import LoRA, add_adapters, save_adapters
from easydel.train import Optimization, Schedule, Settings, Trainer

defaults = ["HuggingFaceTB/SmolLM2-135M-Instruct", "chats.jsonl", "tuned"]
name, chats, out = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

tokenizer = load_tokenizer(name)
model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(name, load_in_8bit=True, scan_layers=True)
params = add_adapters(model, LoRA(r=8, lora_alpha=16, target_modules="all-linear"))

optimizer = Optimization(Schedule(1e-3, "cosine"), "adamw")
settings = Settings(steps=30, batch=4, length=128, save_every=10)
trainer = Trainer(model, params, optimizer, chats, out, settings, tokenizer=tokenizer)  # the loss: assistant's tokens
state = trainer.run()

save_adapters(model, f"{out}/adapter", state.params)  # PEFT loads it
question = tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], add_generation_prompt=True)
answer = model.generate([question], params=state.params, max_new_tokens=16).sequences[0, len(question) :]
print(tokenizer.decode(answer.tolist()))
