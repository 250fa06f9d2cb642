"""`easydel train`: fine-tune a model on a text."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easydel.cli.models import load_model, local_files
from easydel.cli.options import Hub, Loading
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.model import BaseNNXModule
    from easydel.train import Settings
    from easydel.train.data import Pieces

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"


def _train(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Training", **more)


def _lora(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Adapters (LoRA)", **more)


@dataclass(frozen=True)
class Course:
    """The options of the training itself: its length, batches and rates."""

    steps: Annotated[int, _train("Number of steps.")] = 100
    batch: Annotated[int, _train("Sequences in a step.")] = 8
    length: Annotated[int, _train("Tokens in a sequence.")] = 512
    accumulate: Annotated[int, _train("Compute a step in this many parts, one after the other: saves memory.")] = 1
    learning_rate: Annotated[float, _train("Peak of the rate; it falls to a tenth as a cosine.")] = 1e-5
    warmup: Annotated[int, _train("Steps in which the learning rate rises from 0.")] = 0
    weight_decay: Annotated[float, _train("Decay of kernels and embeddings.")] = 0.0
    clip: Annotated[float, _train("Largest norm of all gradients together.")] = 1.0
    z_loss: Annotated[float, _train("Weight of the squared log of the softmax's denominator.")] = 0.0
    seed: Annotated[int, _train("Seed of the order of the text's pieces, and of new adapters.", min=0)] = 0
    save_every: Annotated[int, _train("Steps between checkpoints.")] = 100
    separate_documents: Annotated[
        bool, _train("Tokens see their own document only, though several share a sequence.", "--separate-documents")
    ] = False
    remat: Annotated[
        str | None,
        _train('Recompute in the backward pass: "everything", or less, as "save_attention_and_mlp": docs/training.md.'),
    ] = None

    def settings(self) -> Settings:
        from easydel.train import Settings

        return Settings(
            steps=self.steps,
            batch=self.batch,
            length=self.length,
            accumulate=self.accumulate,
            clip=self.clip,
            z_weight=self.z_loss,
            seed=self.seed,
            save_every=self.save_every,
        )


@dataclass(frozen=True)
class Adapters:
    """The adapters to train in place of the model's own parameters."""

    lora_rank: Annotated[int | None, _lora("Train adapters of this rank, and nothing else.")] = None
    lora_alpha: Annotated[float | None, _lora("Adapters are scaled by alpha / rank. Default: the rank.")] = None
    lora_targets: Annotated[
        str | None,
        _lora("Names of modules, such as q_proj,v_proj, or a regular expression. Default: all but the head."),
    ] = None

    def add(self, model: BaseNNXModule, seed: int) -> dict[str, Any]:
        """Returns the model's parameters, with adapters if they are wanted."""
        from easydel.lora import ALL_LINEAR, LoRA, add_adapters

        if self.lora_rank is None:
            return model.params
        text = self.lora_targets or ALL_LINEAR
        targets = text if text == ALL_LINEAR or not all(_is_name(part) for part in text.split(",")) else text.split(",")
        alpha = self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return add_adapters(model, LoRA(self.lora_rank, alpha, targets), seed=seed)

    def check(self, int8: bool) -> None:
        """Refuses impossible combinations before anything is downloaded."""
        given = {"--lora-alpha": self.lora_alpha, "--lora-targets": self.lora_targets}
        idle = [name for name, value in given.items() if value is not None]
        if self.lora_rank is None and idle:
            raise ArgumentError(f"{' and '.join(idle)} without --lora-rank")
        if self.lora_rank is None and int8:
            raise ArgumentError("int8 parameters cannot be trained", hint="add --lora-rank 8, or leave --int8 out")


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
    from easydel.train.data import needed

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
            help="Hub id, directory, or one weight file; or a .yaml file that has MODEL, TEXT and the options.",
            is_eager=True,
            callback=configured,
        ),
    ],
    text: Annotated[Path, typer.Argument(metavar="TEXT", help='A text, or a .jsonl file with a "text" in each line.')],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for checkpoints and the result.")],
    course: Course,
    adapters: Adapters,
    loading: Loading,
    hub: Hub,
) -> None:
    """Fine-tune MODEL on TEXT with AdamW, and write a model that transformers loads, or adapters that PEFT loads.

    Started again with the same arguments after it was stopped, it continues from its last checkpoint.

    All arguments may stand in a .yaml file: easydel train options.yaml. Those on the command line override it.
    """
    settings = _checked(course, adapters, loading)
    path = local_files(model, hub)
    pieces = _pieces(path, text, course)
    settings = replace(settings, document_end=pieces.end)
    loaded = load_model(path, loading, remat=course.remat, donatable=True)
    params = adapters.add(loaded, course.seed)
    from easydel.train import Trainer, adamw

    optimizer = adamw(course.learning_rate, course.steps, warmup=course.warmup, weight_decay=course.weight_decay)
    identity = {name: getattr(course, name) for name in ("steps", "learning_rate", "warmup", "weight_decay")}
    identity |= {"lora": [adapters.lora_alpha, adapters.lora_targets], "dtype": loading.dtype, "model": str(path)}
    counts = f"{len(pieces.tokens):,} tokens: {len(pieces):,} pieces of {course.length}, {course.batch} in a step"
    print(counts, file=sys.stderr)
    state = Trainer(loaded, params, optimizer, pieces.tokens, out, settings, identity=identity).run()
    result = _write(loaded, out, adapters)
    steps = int(state.count)
    print(f"{steps} steps, {_losses(out, steps)}, wrote {result}", file=sys.stderr)


def _checked(course: Course, adapters: Adapters, loading: Loading) -> Settings:
    adapters.check(loading.int8)
    for name in ("learning_rate", "clip"):
        if not getattr(course, name) > 0:
            raise ArgumentError(f"--{name.replace('_', '-')} {getattr(course, name)} is not positive")
    if course.warmup < 0 or course.weight_decay < 0 or course.z_loss < 0:
        raise ArgumentError("--warmup, --weight-decay and --z-loss must not be negative")
    import easydel.train.data

    for package in ("grain", "optax", "orbax.checkpoint"):
        easydel.train.data.needed(package)
    return course.settings()


def _pieces(path: Path, text: Path, course: Course) -> Pieces:
    from easydel.tokenizer import load_tokenizer
    from easydel.train.data import Pieces, documents, packed

    tokenizer = load_tokenizer(path)
    end = tokenizer.eos_token_id
    if end is None and course.separate_documents:
        raise ArgumentError("--separate-documents needs a tokenizer with an end of sequence", file=path)
    tokens = packed(documents(text), tokenizer.encode, end)
    return Pieces(tokens, course.length, end if course.separate_documents else None)


def _write(model: BaseNNXModule, out: Path, adapters: Adapters) -> Path:
    from easydel.lora import save_adapters

    if adapters.lora_rank is not None:
        save_adapters(model, out / ADAPTER_FOLDER)
        return out / ADAPTER_FOLDER
    model.export(out / MODEL_FOLDER)
    return out / MODEL_FOLDER


def _losses(out: Path, steps: int) -> str:
    """Returns the first and the last loss of the log, as far as it exists."""
    from easydel.train.trainer import LOSSES, read_losses

    lines = read_losses(out)
    if not lines:
        return f"no losses in {LOSSES}"
    first, last = lines[0], lines[-1]
    which = "" if len(lines) == steps else f" in steps {first['step']} to {last['step']}"
    return f"loss {first['loss']:.4f} -> {last['loss']:.4f}{which}"


def _is_name(text: str) -> bool:
    return all(part.isidentifier() or part.isdigit() for part in text.split("."))
