"""Text to token ids and back, and chats to prompts, as the checkpoint's own tokenizer files say."""

from easydel.tokenizer.load import load_tokenizer
from easydel.tokenizer.text import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
