"""Writes a tokenizer as a checkpoint has it: tokenizer.json, tokenizer_config.json and the chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from easydel.tokenizer.text import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the files of a tokenizer of the tokenizers library (others have files to copy) into `folder`."""
    backend: Any = tokenizer.backend
    backend.save(str(folder / "tokenizer.json"))
    templates: Any = tokenizer.templates.get("default")
    if len(tokenizer.templates) > 1:
        templates = [{"name": name, "template": text} for name, text in tokenizer.templates.items()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": tokenizer.cleans,
        **tokenizer.special_tokens,
        **({"chat_template": templates} if templates else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
