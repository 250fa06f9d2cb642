"""Dots 3 Note with images and sound: the config of its language model, whose keys are among the outer ones in files."""

from typing import Any

from easydel.config import HFConfig
from easydel.families.qwen2_vl import NOT_TEXT
from easydel.multimodal import completed, nested

# in the first files, in files of transformers' names, and layers that predict tokens further ahead
IGNORED = (r"(model\.)?(vision|audio)_(encoder|tower|adapter)\..*", r"(model\.)?(language_model\.)?mtp\..*")


def dots3_note_text_config(c: HFConfig) -> dict[str, Any]:
    """Returns the config of a `dots3_note_text`."""
    flat = {key: value for key, value in c.to_dict().items() if key not in (*NOT_TEXT, "audio_config")}
    text = flat if c.get("text_config") is None else nested(c)
    return completed(c, text | {"model_type": "dots3_note_text"}, tied=False)
