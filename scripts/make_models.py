"""Writes docs/models.md: the table of models. `make models` runs this, and a test compares the file with it."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

from easydel.cli.families import kind, refused, rows, summary

FILE = Path(__file__).parents[1] / "docs" / "models.md"
HEAD = """# Models

What `easydel families --all` lists; `make models` writes this page. Every type that loads is compared with
transformers: logits, padding, cached decoding, export. Files are safetensors, PyTorch's, or
[quantized](quantization.md) ones; GGUF where its name stands here. All types can be sharded, scanned, trained,
adapted, stored in 8 bits and exported. "Text of it": a model with images or sound, of which the language model
alone is loaded. "Refused": the type does not load, for the reason in its row. A checkpoint of another organization
works if its config.json has the `model_type`; a setting that is not implemented is an error that names it.
{summary}

| model_type | what it is | kind | GGUF | checkpoints |
|---|---|---|---|---|
"""


def line(row: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in row["checkpoints"])
    return f"| `{row['model_type']}` | {row['description']} | {kind(row)} | {', '.join(row['gguf'])} | {names} |\n"


def text() -> str:
    found = sorted([*rows(), *refused()], key=itemgetter("model_type"))
    return HEAD.format(summary=summary()) + "".join(map(line, found))


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {len(rows())} rows that load")
