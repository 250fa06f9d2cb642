"""A tokenizer with a chat template as ChatML has it, and chats to train on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from built_tokenizers import BACKENDS, save
from commands import CASE
from parity import make_reference
from tokenizers import Tokenizer as FastTokenizer

from easydel.tokenizer import Tokenizer

END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")  # without the marks
# As Qwen3's: thoughts of earlier answers are dropped, and the last one has some, if only empty ones.
FORGETFUL = PLAIN.replace("m.content +", "(m.content if not loop.last else '<think>' + m.content) +", 1)
ROLES = {"token": ["<|im_start|>", END]}


def backend() -> FastTokenizer:
    """Byte-level, with the marks of ChatML as tokens."""
    made = FastTokenizer.from_str(BACKENDS["byte_level"].to_str())
    made.add_special_tokens(ROLES["token"])
    return made


def chat_tokenizer(template: str = PLAIN, **more: str) -> Tokenizer:
    return Tokenizer(backend(), special_tokens={"eos_token": END}, templates={"default": template, **more})


def chat(*texts: str) -> list[dict[str, Any]]:
    """Messages of the user and the assistant, in turns."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations of different lengths, two turns in every third."""
    names = ("fox", "dog", "crow", "newt")
    made = []
    for number in range(count):
        turns = [f"Is the {names[number % 4]} {number} lazy?", "No, it's quick!" * (1 + number % 2)]
        made.append({"messages": chat(*turns, *(["Done?", "They've gone."] if number % 3 == 0 else []))})
    return made


def save_chat_model(folder: Path, *, template: str) -> Any:
    """A tiny Llama with that tokenizer, saved in `folder`; transformers' model of it."""
    made = backend()
    case = replace(
        CASE, config={**CASE.config, "vocab_size": made.get_vocab_size(), "eos_token_id": made.token_to_id(END)}
    )
    reference = make_reference(case, folder)
    save(folder, made, chat_template=template, eos_token=END, extra_special_tokens=ROLES["token"])
    return reference
