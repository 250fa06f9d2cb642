"""Writes docs/models.md: the table of models. `make models` runs this, and a test compares the file with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easydel.cli.families import kind, rows

FILE = Path(__file__).parents[1] / "docs" / "models.md"
HEAD = """# Models

What `easydel families` lists; `make models` writes this page. Every type is compared with transformers: logits,
padding, cached decoding, export. Files are safetensors, PyTorch's, or [quantized](quantization.md) ones; GGUF where its
name stands here. All types can be sharded, scanned, trained, adapted, stored in 8 bits and exported. "Text of it": a
model with images or sound, of which the language model alone is loaded. A checkpoint of another organization works if
its config.json has the `model_type`; a setting that is not implemented is an error that names it.

| model_type | what it is | kind | GGUF | checkpoints |
|---|---|---|---|---|
"""


def line(row: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in row["checkpoints"])
    return f"| `{row['model_type']}` | {row['description']} | {kind(row)} | {', '.join(row['gguf'])} | {names} |\n"


def text() -> str:
    return HEAD + "".join(map(line, rows()))


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {len(rows())} rows")
