"""Files as torch.save writes them, and a check that reading refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from easydel.checkpoint import open_checkpoint
from easydel.errors import CheckpointError

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: object, file: Path, zipped: bool = True, **options: Any) -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=zipped, **options)
    return file


def refusal(file: Path, *parts: str, tensor: str | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint([file])
    for part in (*parts, str(file)):
        assert part in str(caught.value)
    assert caught.value.file == str(file)
    assert caught.value.tensor == tensor
