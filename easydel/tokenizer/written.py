"""The tokenizer in a GGUF file as files of its own, which transformers and `load_tokenizer` read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from easydel.checkpoint import open_checkpoint
from easydel.checkpoint.files import is_plain_name
from easydel.errors import EasyDeLError
from easydel.hub.select import TEMPLATES
from easydel.tokenizer.files import CONFIG
from easydel.tokenizer.load import gguf_tokenizer_files
from easydel.weights.gguf import chat_templates, special_tokens, tokenizer_json
from easydel.weights.gguf_config import TOKEN_IDS

logger = logging.getLogger(__name__)


def write_gguf_companions(origin: Path, config: Mapping[str, object], folder: Path) -> bool:
    """Writes to `folder` what a directory has beside its weights, if `origin` has it in a GGUF file; says whether.

    These are tokenizer.json, tokenizer_config.json, the chat templates, and generation_config.json with the tokens that
    begin and end texts, from `config`. A tokenizer that cannot be read is left out, and a warning says why.
    """
    files = gguf_tokenizer_files(origin)
    if files is None:
        return False
    ids = {key: config[key] for key in TOKEN_IDS.values() if config.get(key) is not None}
    _write(folder / "generation_config.json", _json(ids))
    metadata = open_checkpoint(files).metadata
    try:
        tokenizer = tokenizer_json(metadata, files[0]).to_str()
    except EasyDeLError as error:
        logger.warning("the model is written without a tokenizer: %s", error)
        return True
    _write(folder / "tokenizer.json", tokenizer)
    # this class takes tokenizer.json as it is; a model's own would rebuild it from the vocabulary
    roles = special_tokens(metadata, files[0])
    _write(folder / CONFIG, _json({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    for name, template in chat_templates(metadata).items():
        if name == "default":
            _write(folder / "chat_template.jinja", template)
        elif is_plain_name(f"{name}.jinja"):
            _write(folder / TEMPLATES / f"{name}.jinja", template)
    return True


def _json(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
