"""`easydel plan --compile`: a model's programs, compiled for chips that are not there, and what they would cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.cli.meshes import Placed, best_first, bytes_sent, longest, sensible
from easydel.cli.tables import print_facts, print_table, size
from easydel.cli.where import mesh_text
from easydel.errors import ArgumentError, ShardingError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from easydel.aot.cost import Cost
    from easydel.aot.topology import Chip
    from easydel.model import BaseNNXModule

PANEL = "Compiling"


def _compile(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=PANEL)


@dataclass(frozen=True)
class Compiling:
    """The program to compile, and the chips to compile it for."""

    compile: Annotated[
        str | None, _compile("Compile for this TPU topology, such as v5e:4x4, without it; needs libtpu.")
    ] = None
    train: Annotated[str | None, _compile("BATCH,LENGTH of a training step with AdamW.")] = None
    generate: Annotated[str | None, _compile("BATCH,LENGTH: rows, and slots of the cache, of a decoding step.")] = None
    compare: Annotated[
        bool, _compile("Compile for the meshes that make sense for these chips, too, and list them.", "--compare")
    ] = False
    remat: Annotated[str | None, _compile("Recompute in the backward pass, as in `easydel train`.")] = None

    def __post_init__(self):
        if self.compile is None:
            if given := [name for name in ("train", "generate", "remat", "compare") if getattr(self, name)]:
                raise ArgumentError(f"--{' and --'.join(given)} without --compile", hint="add --compile v5e:4x4")
            return
        if (self.train is None) == (self.generate is None):
            raise ArgumentError("--compile needs --train BATCH,LENGTH or --generate BATCH,LENGTH")
        if self.remat is not None and self.train is None:
            raise ArgumentError("--remat is for --train")
        self.sizes()

    def sizes(self) -> tuple[int, int]:
        """Returns the number of rows, and of tokens or slots in each."""
        text = self.train or self.generate or ""
        if (found := re.fullmatch(r"([1-9]\d{0,6}),([1-9]\d{0,8})", text.replace(" ", ""))) is None:
            raise ArgumentError(f"{text!r} is no BATCH,LENGTH", hint="write two numbers, such as 16,4096")
        return int(found[1]), int(found[2])


def report(
    built_for: Callable[[Placed], BaseNNXModule], placed: Placed, compiling: Compiling, *, as_json: bool
) -> None:
    """Compiles the program for a mesh, and prints its costs; beside those for others, if they are to be compared."""
    from easydel.aot.topology import CHIPS

    name = compiling.compile or ""
    chip = CHIPS.get(name.partition(":")[0])
    if chip is None:
        raise ArgumentError(f"nothing is known of the chips of {name!r}", hint=f"use one of {', '.join(CHIPS)}")
    facts = _facts(built_for, placed, compiling, chip)
    found = _compared(built_for, placed, facts, compiling, chip) if compiling.compare else []
    if as_json:
        print(json.dumps(facts | ({"compared": found, "best": found[0]["flags"]} if found else {}), indent=2))
        return
    _print(facts)
    if found:
        _print_compared(found)
    elif not facts["fits"]:
        print("--compare finds a mesh that fits, if there is one")


def _facts(
    built_for: Callable[[Placed], BaseNNXModule], placed: Placed, compiling: Compiling, chip: Chip
) -> dict[str, Any]:
    model = built_for(placed)
    assert model.policy.mesh is not None
    placed = replace(placed, dims=tuple(model.policy.mesh.shape.values()))
    found = facts_of(costs(model, compiling), compiling, chip, model.policy.mesh)
    return {**found, "split_residual": placed.split_residual, "flags": placed.flags}


def _compared(
    built_for: Callable[[Placed], BaseNNXModule], given: Placed, own: dict[str, Any], compiling: Compiling, chip: Chip
) -> list[dict[str, Any]]:
    """Returns the facts of all meshes, the best first; those that the model cannot be split over are left out.

    `own` are the facts of the mesh that was `given`.
    """
    rows, _ = compiling.sizes()
    found = [own]
    for other in sensible(own["chips"], rows, training=compiling.train is not None):
        placed = replace(other, replicate_kv=given.replicate_kv)
        if placed.flags != own["flags"]:
            with suppress(ShardingError):
                found.append(_facts(built_for, placed, compiling, chip))
    return best_first(found)


def _print_compared(found: Sequence[Mapping[str, Any]]) -> None:
    def row(one: Mapping[str, Any]) -> tuple[str, ...]:
        sent, fits = bytes_sent(one), "yes" if one["fits"] else "no"
        told = "not told" if sent is None else size(sent)
        return one["flags"], size(one["chip_bytes"]["total"]), fits, told, f"{1e3 * longest(one):.3f}"

    columns = ("mesh", "memory", "fits", "sent", "at least, ms")
    print(f"\nthe meshes that make sense for {found[0]['chips']} chips, compiled, not run, the best first:")
    print_table(columns, [row(one) for one in found], numbers=columns[1:])


def costs(model: BaseNNXModule, compiling: Compiling) -> Cost:
    """Returns the costs of the program that is asked for."""
    from easydel.aot import tracing
    from easydel.aot.cost import bytes_on_each, cost_of
    from easydel.tree import flatten

    assert model.policy.mesh is not None
    rows, length = compiling.sizes()
    params = tracing.placed_shapes(model)
    if compiling.train is not None:
        import optax

        optimizer = optax.adamw(1e-4)
        moments = tracing.moments_of(model, params, optimizer)
        traced = tracing.trace_training(model, params, optimizer, rows, length, clip=1.0)
        arguments = {"parameters": params, "moments": moments}
        touched = 2 * sum(map(bytes_on_each, arguments.values()))  # each is read, and written
    else:
        cache = tracing.cache_of(model, rows, length)
        traced = tracing.trace_step(model, params, rows, length)
        arguments = {"parameters": params, "cache": cache}
        looked_up = {} if model.record.head.tied else {"embedding": "model/embed_tokens/embedding"}
        touched = sum(map(bytes_on_each, arguments.values()))
        touched -= sum(bytes_on_each(flatten(params)[path]) for path in looked_up.values())  # a few rows of it
    return cost_of(traced, arguments, model.policy.mesh.shape, touched)


def facts_of(cost: Cost, compiling: Compiling, chip: Chip, mesh: Mesh) -> dict[str, Any]:
    rows, length = compiling.sizes()
    bounds = cost.bounds(chip)
    limit = max(bounds, key=lambda name: bounds[name])
    tokens = rows * length if compiling.train is not None else rows
    return {
        "compiled_for": compiling.compile,
        "run": False,
        "mesh": dict(mesh.shape),
        "chips": mesh.size,
        "program": "train" if compiling.train is not None else "generate",
        "batch": rows,
        "length": length,
        "chip_bytes": {**cost.held, "total": cost.total},
        "chip_memory": chip.memory,
        "fits": cost.fits,
        "sent": None if cost.sent is None else _by_kind(cost),
        "flops": cost.flops,
        "touched_bytes": cost.touched,
        "bound_seconds": bounds,
        "limited_by": limit,
        "tokens_per_second": tokens / bounds[limit],
    }


def _by_kind(cost: Cost) -> list[dict[str, Any]]:
    """Returns the bytes that a chip sends, by kind and mesh axes, the most first."""
    totals: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for one in cost.sent or ():
        row = totals.setdefault((one.kind, one.axes), [0, 0])
        row[0] += one.total
        row[1] += one.times
    ordered = sorted(totals.items(), key=lambda item: -item[1][0])
    return [{"kind": kind, "axes": axes, "bytes": sent, "times": times} for (kind, axes), (sent, times) in ordered]


def _print(facts: Mapping[str, Any]) -> None:
    what = "a training step" if facts["program"] == "train" else "a decoding step"
    print(f"{what} of {facts['batch']} x {facts['length']} tokens, compiled for {facts['compiled_for']}, not run")
    split = ", activations split over tp between layers" if facts["split_residual"] else ""
    print(f"{facts['chips']} chips, mesh {mesh_text(facts['mesh'])}{split}\n\non each chip:")
    print_facts({f"  {kind}": size(count) for kind, count in facts["chip_bytes"].items()})
    print(f"  {'fits' if facts['fits'] else 'does not fit'}: a chip has {size(facts['chip_memory'])}")
    print("\nsent by each chip:")
    if facts["sent"] is None:
        print("  not told by the compiler")
    else:
        columns = ("kind", "over", "bytes", "times")
        rows = [(row["kind"], " ".join(row["axes"]), size(row["bytes"]), str(row["times"])) for row in facts["sent"]]
        print_table(columns, rows, numbers=("bytes", "times"))
    print("\na step takes at least, at the chip's peak rates, each of these behind the longest:")
    print_facts({f"  {name}": f"{1e3 * seconds:.3f} ms" for name, seconds in facts["bound_seconds"].items()})
    print(f"limited by {facts['limited_by']}: at most {facts['tokens_per_second']:,.0f} tokens/s on all chips together")
