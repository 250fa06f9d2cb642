"""Chats with a model: each line of standard input is a message. python examples/chat.py [MODEL]"""

import sys

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.generate import PromptCache

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(name, dtype="auto", param_dtype="auto")
tokenizer = load_tokenizer(name)

messages, cache = [], PromptCache()  # the cache keeps earlier turns, so that only what is new is computed
for line in sys.stdin:
    messages.append({"role": "user", "content": line.strip()})
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    out = model.generate([ids], max_new_tokens=64, prompt_cache=cache)
    answer = tokenizer.decode(out.sequences[0, len(ids) :].tolist())
    messages.append({"role": "assistant", "content": answer})
    print(answer, flush=True)
