"""From text to token ids and back, and from chats to prompts, by the checkpoint's own tokenizer files."""

from easydel.tokenizer.load import load_tokenizer
from easydel.tokenizer.text import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
