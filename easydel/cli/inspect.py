"""`easydel inspect`: the contents of a checkpoint, from its headers."""

from __future__ import annotations

import json
import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydel.cli.codes import codes, print_codes
from easydel.cli.models import headers
from easydel.cli.options import Hub, Json, Model
from easydel.cli.tables import print_facts, print_table, size
from easydel.errors import CheckpointError, ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from easydel.checkpoint import Checkpoint
    from easydel.hub.streamed import Streamed
    from easydel.model import BaseNNXModule
    from easydel.source import CheckpointSource

Facts = dict[str, Any]
MAX_ROWS = 500
SIZES = (
    *("parameters", "layers", "blocks", "features", "heads", "kv_heads", "head_dim", "window"),
    *("vocabulary", "tied", "context"),
)


def inspect(model: Model, hub: Hub, as_json: Json = False) -> None:
    """Say what a model is, what its files hold, and whether they fit each other. No weights are read."""
    where = headers(model, hub)
    from easydel.source import open_source

    source = open_source(where, saved=False, follow_links=hub.follow_links)
    facts = {**_files(source, _sizes_of(source, where)), **_architecture(source)}
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _sizes_of(source: CheckpointSource, where: Path | Streamed) -> dict[str, int]:
    """The bytes of each file of weights, by name."""
    if isinstance(where, Path):
        return {file.name: file.stat().st_size for file in source.checkpoint.files}
    return {file.name: remote.size for file, remote in where.weights.items()}


def _files(source: CheckpointSource, sizes: dict[str, int]) -> Facts:
    checkpoint = source.checkpoint
    return {
        "path": str(source.path),
        "format": checkpoint.format + (" (save_pretrained)" if source.manifest else ""),
        "files": sizes,
        "bytes": sum(sizes.values()),
        "model_type": source.config.get("model_type"),
        "architectures": source.config.get("architectures") or [],
        "dtypes": _dtypes(checkpoint),
        "quantization": codes(source),
        "tensors": _tensors(checkpoint),
    }


def _dtypes(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in checkpoint.values():
        sums = found.setdefault(tensor.encoding or str(tensor.dtype), {"tensors": 0, "numbers": 0, "bytes": 0})
        sums["tensors"] += 1
        sums["numbers"] += prod(tensor.shape)
        sums["bytes"] += tensor.nbytes
    return found


def _tensors(checkpoint: Checkpoint) -> list[Facts]:
    """Groups tensors whose names differ by numbers only."""
    counts = Counter(
        (re.sub(r"\b\d+\b", "*", tensor.name), tensor.shape, tensor.encoding or str(tensor.dtype))
        for tensor in checkpoint.values()
    )
    return [
        {"name": name, "shape": list(shape), "dtype": dtype, "count": count}
        for (name, shape, dtype), count in counts.items()
    ]


def _architecture(source: CheckpointSource) -> Facts:
    """Returns the properties of our model of the checkpoint; `problem` is the reason if it cannot be loaded."""
    from easydel.auto import choose_family
    from easydel.loading import build_model
    from easydel.policy import Policy
    from easydel.prepare import plan_for
    from easydel.source import language_model

    facts: Facts = {}
    problem = None
    try:
        source = language_model(source)
        family = choose_family(source.config, encoder_decoder=False)
        model = build_model(family, family.configured(source.config), Policy(), source)
        facts = _sizes(model)
        plan_for(model, source)
    except (CheckpointError, ConfigError, UnsupportedModelError) as error:
        problem = str(error)
    return {**facts, "loads": problem is None, "problem": problem}


def _sizes(model: BaseNNXModule) -> Facts:
    blocks = [block for stack in model.record.layer_stacks.values() for block in stack]
    sizes = [sizes for block in dict.fromkeys(blocks) for sizes in block.head_sizes()]
    return {
        "parameters": model.num_params(),
        "vocabulary": model.record.vocab,
        "features": model.record.features,
        "context": model.record.max_length,
        "tied": model.record.head.tied,
        "layers": len(blocks),
        "blocks": dict(Counter(_kind(block) for block in blocks)),
        **{
            name: sorted({getattr(own, name) for own in sizes} - {None})
            for name in ("heads", "kv_heads", "head_dim", "window")
        },
    }


def _kind(block: Any) -> str:
    parts = [part for slot, part in block.parts() if slot != "cross"]
    return " + ".join(type(part).__name__ for part in parts)


def _print(facts: Facts) -> None:
    kind, architectures = facts["model_type"], facts["architectures"]
    names = ", ".join(map(str, architectures)) if isinstance(architectures, list) else f"{architectures!r:.100}"
    print_facts(
        {
            "path": facts["path"],
            "model type": _printable(f"{kind} ({names})" if names else kind),
            **{name: _text(facts[name]) for name in SIZES if facts.get(name) not in (None, [])},
            "format": f"{facts['format']}, {size(facts['bytes'])}",
            "loads": "yes" if facts["loads"] else _printable(f"no: {facts['problem']}"),
        }
    )
    print()
    if facts["quantization"] is not None:
        print_codes(facts["quantization"])
    print_table(("file", "bytes"), [(name, f"{count:,}") for name, count in facts["files"].items()], numbers=["bytes"])
    print()
    print_table(
        ("dtype", "tensors", "numbers", "bytes"),
        [(dtype, *(f"{count:,}" for count in sums.values())) for dtype, sums in facts["dtypes"].items()],
        numbers=["tensors", "numbers", "bytes"],
    )
    print()
    rows = facts["tensors"][:MAX_ROWS]
    print_table(
        ("tensor", "shape", "dtype", "count"),
        [(row["name"], str(row["shape"]), row["dtype"], str(row["count"])) for row in rows],
        numbers=["count"],
    )
    if rest := len(facts["tensors"]) - len(rows):
        print(f"... and {rest:,} more; --json lists all")


def _printable(text: Any) -> str:
    """Escapes half a character, which a config may hold and no terminal takes."""
    return str(text).encode(errors="backslashreplace").decode()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} x {name}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:,}"
