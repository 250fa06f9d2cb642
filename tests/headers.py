"""Checkpoints of any size that take no room: a config, headers, and files that are holes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

BITS = {"F32": 32, "BF16": 16, "F8_E4M3": 8, "I32": 32}


def write_headers(
    directory: Path, config: dict[str, Any], tensors: Iterable[tuple[str, str, tuple[int, ...]]], shards: int
) -> Path:
    """Writes tensors (name, dtype, shape), dealt to so many files."""
    weight_map: dict[str, str] = {}
    (directory / "config.json").write_text(json.dumps(config))
    every = list(tensors)
    for shard in range(shards):
        file, header, place = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors", {}, 0
        for name, dtype, shape in every[shard::shards]:
            end = place + prod(shape) * BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, end]}
            place, weight_map[name] = end, file
        text = json.dumps(header).encode()
        with (directory / file).open("wb") as handle:
            handle.write(struct.pack("<Q", len(text)) + text)
            handle.truncate(8 + len(text) + place)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
