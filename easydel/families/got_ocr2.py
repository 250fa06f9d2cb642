"""GOT-OCR 2 (Wei et al. 2024, arXiv:2409.01704): its language model, a Qwen2."""

from __future__ import annotations

from typing import Any

from easydel.config import HFConfig
from easydel.families import wrapper
from easydel.families.llava import IMAGES
from easydel.wrapper import text_config


@wrapper("got_ocr2", ignored=IMAGES)
def got_ocr2(c: HFConfig) -> dict[str, Any]:
    return text_config(c, "qwen2", tied=True)
