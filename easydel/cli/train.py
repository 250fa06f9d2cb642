"""`easydel train`: fine-tune a model on chats, or on a text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.cli.course import Course, Rates, Watch
from easydel.cli.distributed import Processes
from easydel.cli.examples import Examples, read_examples, told
from easydel.cli.models import load_model, local_files
from easydel.cli.options import Hub, Languages, Loading
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.model import BaseNNXModule

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"


def _lora(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Adapters (LoRA)", **more)


@dataclass(frozen=True)
class Adapters:
    """The adapters to train in place of the model's own parameters."""

    lora_rank: Annotated[int | None, _lora("Train adapters of this rank, and nothing else.")] = None
    lora_alpha: Annotated[float | None, _lora("Adapters are scaled by alpha / rank. Default: the rank.")] = None
    lora_targets: Annotated[
        str | None,
        _lora("Names of modules, such as q_proj,v_proj, or a regular expression. Default: all but the head."),
    ] = None
    lora_dropout: Annotated[float, _lora("Share of what adapters see that is dropped while training.")] = 0.0
    dora: Annotated[bool, _lora("Learn the lengths of adapted rows, too (DoRA).", "--dora")] = False
    rslora: Annotated[bool, _lora("Scale by alpha / the root of the rank (rsLoRA).", "--rslora")] = False

    def add(self, model: BaseNNXModule, seed: int) -> dict[str, Any]:
        """Returns the model's parameters, with adapters if they are wanted."""
        from easydel.lora import ALL_LINEAR, LoRA, add_adapters

        if self.lora_rank is None:
            return model.params
        text = self.lora_targets or ALL_LINEAR
        names = [] if text == ALL_LINEAR or not all(_is_name(part) for part in text.split(",")) else text.split(",")
        experts = [name for name in names if "experts" in name.split(".")]
        alpha = self.lora_rank if self.lora_alpha is None else self.lora_alpha
        lora = LoRA(
            self.lora_rank,
            alpha,
            [name for name in names if name not in experts] if names else text,
            use_rslora=self.rslora,
            lora_dropout=self.lora_dropout,
            use_dora=self.dora,
            target_parameters=experts,
        )
        return add_adapters(model, lora, seed=seed)

    def check(self, codes: str | None) -> None:
        """Refuses impossible combinations before anything is downloaded."""
        given = {"--lora-alpha": self.lora_alpha, "--lora-targets": self.lora_targets}
        switched = {"--lora-dropout": self.lora_dropout, "--dora": self.dora, "--rslora": self.rslora}
        idle = [name for name, value in given.items() if value is not None]
        idle += [name for name, value in switched.items() if value]
        if self.lora_rank is None and idle:
            raise ArgumentError(f"{' and '.join(idle)} without --lora-rank")
        if self.lora_rank is None and codes:
            hint = f"add --lora-rank 8, or leave --{codes} out"
            raise ArgumentError(f"{codes} parameters cannot be trained", hint=hint)


def configured(context: typer.Context, model: str) -> str:
    """Returns MODEL, or the model that a .yaml file names; the file's other entries become the options' defaults."""
    if not model.endswith((".yaml", ".yml")):
        return model
    values = {str(key).replace("-", "_"): value for key, value in _read_yaml(Path(model)).items()}
    known = sorted(parameter.name or "" for parameter in context.command.params if parameter.name != "help")
    if unknown := sorted(values.keys() - set(known)):
        raise ArgumentError(f"unknown keys {unknown}", file=model, hint=f"it may have {', '.join(known)}")
    if not isinstance(found := values.pop("model", None), str):
        raise ArgumentError("names no model", file=model, hint="model: a Hub id, a directory, or one weight file")
    context.default_map = {key: _plain(key, value, model) for key, value in values.items()}
    return found


def _read_yaml(file: Path) -> dict[Any, Any]:
    from easydel.train.reading import needed

    yaml = needed("yaml")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ArgumentError(f"cannot be read: {' '.join(str(error).split())}", file=file) from None
    if not isinstance(values, dict):
        raise ArgumentError("is no mapping of options to values", file=file)
    return values


def _plain(key: str, value: Any, file: str) -> Any:
    """Returns a value in the form of the command line: lists are joined."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if not isinstance(value, str | int | float | None):
        raise ArgumentError(f"{key} is {value!r:.80}, expected one value", file=file)
    return value


def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hub id, directory, or one weight file; or a .yaml file with MODEL, FILE (as text) and the options.",
            is_eager=True,
            callback=configured,
        ),
    ],
    text: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Chats or texts: .jsonl, .json, .csv, .tsv, .parquet, or a text: docs/training.md."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for checkpoints and the result.")],
    course: Course,
    rates: Rates,
    watch: Watch,
    adapters: Adapters,
    loading: Loading,
    hub: Hub,
    languages: Languages,
    processes: Processes,
) -> None:
    """Fine-tune MODEL on the chats or the text in FILE, and write a model that transformers loads, or adapters that
    PEFT loads.

    Encoder-decoders learn pairs, {"input": ..., "target": ...}. Of chats, only what the assistant says is learned.
    Stopped, by Ctrl-C or otherwise, and started again with the same arguments, it continues from its last checkpoint.

    All arguments may stand in a .yaml file: easydel train options.yaml. Those on the command line override it.
    """
    adapters.check("int8" if loading.int8 else "int4" if loading.int4 else None)
    optimization, settings = rates.optimization(), course.settings(watch)
    _check_packages()
    path = local_files(model, hub)
    read = partial(
        read_examples, path, separate=course.separate_documents, languages=languages, follow_links=hub.follow_links
    )
    examples = read(text)
    settings = replace(settings, document_end=examples.document_end)
    learned, held = _parted(examples, read, course, watch)
    loaded = load_model(path, loading, remat=course.remat, donatable=True, follow_links=hub.follow_links)
    from easydel.train import Trainer

    identity = {"lora": [adapters.lora_alpha, adapters.lora_targets], "dtype": loading.dtype, "model": str(path)}
    params = adapters.add(loaded, course.seed)
    trainer = Trainer(loaded, params, optimization, learned, out, settings, identity=identity, evaluation=held)
    print(f"{told(trainer.source)}: {trainer.steps:,} steps of {course.batch}", file=sys.stderr)
    state = trainer.run()
    result = _write(loaded, out, adapters)
    print(f"{int(state.count)} steps, {_losses(out, int(state.count))}, wrote {result}", file=sys.stderr)


def _parted(examples: Examples, read: Callable[[Path], Examples], course: Course, watch: Watch) -> tuple[Any, Any]:
    """Returns what is trained on and what is evaluated, if anything is; a text that is too short is refused here."""
    from easydel.train import held_out
    from easydel.train.data import Pieces

    learned, held = examples.encoded, None
    if watch.eval_split is not None:
        learned, held = held_out(learned, watch.eval_split, course.seed)
    elif watch.eval_file is not None:
        held = read(watch.eval_file).encoded
    if isinstance(learned, list):  # rows of these depend on what the model can do
        return learned, held
    return Pieces(learned, course.length, examples.document_end), held


def _check_packages() -> None:
    from easydel.train.reading import needed

    for package in ("grain", "optax", "orbax.checkpoint"):
        needed(package)


def _write(model: BaseNNXModule, out: Path, adapters: Adapters) -> Path:
    from easydel.lora import save_adapters

    if adapters.lora_rank is not None:
        save_adapters(model, out / ADAPTER_FOLDER)
        return out / ADAPTER_FOLDER
    model.export(out / MODEL_FOLDER)
    return out / MODEL_FOLDER


def _losses(out: Path, steps: int) -> str:
    """Returns the first and the last loss of the log, as far as it exists."""
    from easydel.train.logs import LOSSES, read_losses

    lines = read_losses(out)
    if not lines:
        return f"no losses in {LOSSES}"
    first, last = lines[0], lines[-1]
    which = "" if len(lines) == steps else f" in steps {first['step']} to {last['step']}"
    return f"loss {first['loss']:.4f} -> {last['loss']:.4f}{which}"


def _is_name(text: str) -> bool:
    return all(part.isidentifier() or part.isdigit() for part in text.split("."))
