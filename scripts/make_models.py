"""Writes docs/models.md, and what of easydel a type of models does without, found by its tests' cases.

`make models` runs this, and a test compares the files with it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from operator import itemgetter
from pathlib import Path
from typing import Any

from easydel.cli.families import LEFT_OUT, kind, refused, rows, summary
from easydel.families import find_family

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "models.md"
LONG = 1 << 20  # tokens of a row
BOTH_WAYS = "generation unless causal"  # a config says whether tokens see later ones
HEAD = """# Models

What `easydel families --all` lists; `make models` writes this page. Every type that loads is compared with
transformers: logits, padding, cached decoding, export. Files are safetensors, PyTorch's, or
[quantized](quantization.md) ones; GGUF where its name stands here. All types can be sharded, scanned, trained,
adapted, stored in 8 bits and exported. "Text of it": a model with images or sound, of which the language model
alone is loaded. "Refused": the type does not load, for the reason in its row. A checkpoint of another organization
works if its config.json has the `model_type`; a setting that is not implemented is an error that names it.
"Left out": packed rows hold several documents in training (`segment_ids`), kept prompts are conversations of which
only the new part is computed (`PromptCache`).
{summary}

| model_type | what it is | kind | GGUF | left out | checkpoints |
|---|---|---|---|---|---|
"""


def line(row: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in row["checkpoints"])
    cells = [f"`{row['model_type']}`", row["description"], kind(row)]
    cells += [", ".join(row["gguf"]), ", ".join(row["left_out"]), names]
    return f"| {' | '.join(cells)} |\n"


def left_out() -> str:
    """The JSON of LEFT_OUT: for each family what none of its cases can, and what some cannot."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cases import all_cases
    from trained import described

    found: dict[str, list[set[str]]] = defaultdict(list)
    for case in all_cases():
        found[find_family(case.model_type, encoder_decoder=case.seq2seq).name].append(
            lacks(described(case)[0], encoder_decoder=case.seq2seq)
        )
    lines = []
    for name, cases in sorted(found.items()):
        whats = [
            what if what == BOTH_WAYS or all(what in one for one in cases) else f"{what} of some"
            for what in sorted(set().union(*cases))
        ]
        lines += [f"{json.dumps(name)}: {json.dumps(whats)}"] if whats else []
    return "{\n" + ",\n".join(lines) + "\n}\n"


def lacks(record: Any, *, encoder_decoder: bool) -> set[str]:
    """What a model cannot."""
    if encoder_decoder:
        return {"packed rows", "kept prompts"}
    if record.looks_ahead:
        return {BOTH_WAYS}
    answers = {"packed rows": record.unpacked(LONG) != [], "kept prompts": record.rewinds(LONG, LONG) == 0}
    return {what for what, lacking in answers.items() if lacking}


def text() -> str:
    found = sorted([*rows(), *refused()], key=itemgetter("model_type"))
    return HEAD.format(summary=summary()) + "".join(map(line, found))


if __name__ == "__main__":
    LEFT_OUT.write_text(left_out())
    FILE.write_text(text())
    print(f"{FILE}: {len(rows())} rows that load")
