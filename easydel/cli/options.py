"""Options that several commands share, as records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from easydel.cli.distributed import Processes
from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.sharding import PartitionAxis
    from easydel.sharding.axes import AxisName

MESH = "Sizes of the mesh axes dp,fsdp,tp,sp: 1,2,4,1 or fsdp=2,tp=4; one -1 takes the remaining devices."
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
# Greedy decoding, whatever the checkpoint's generation_config says; only its end tokens count.
GREEDY = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
}

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, directory, or one weight file.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Hub id, directory, or one weight file.")]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", help="Directory or Hub id of adapters (LoRA, as PEFT writes them) to add to the model."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _hub(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Hub")


def _load(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Loading")


def _language(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Translation")


def _sample(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Generation")


@dataclass(frozen=True)
class Hub:
    """The version of a repository, and the way to reach it."""

    revision: Annotated[str | None, _hub("Branch, tag or commit.")] = None
    token: Annotated[str | None, _hub("Access token; better set HF_TOKEN: others can see a command line.")] = None
    local_files_only: Annotated[bool, _hub("Use only earlier downloads.", "--local-files-only")] = False
    follow_links: Annotated[
        bool, _hub("Read a directory's files also where they are links that lead out of it.", "--follow-links")
    ] = False

    def arguments(self) -> dict[str, Any]:
        return {"revision": self.revision, "token": self.token, "local_files_only": self.local_files_only}


@dataclass(frozen=True)
class Loading:
    """The placement of a model, and its precision."""

    mesh: Annotated[str | None, _load(f"{MESH} Default: every device along fsdp.")] = None
    dtype: Annotated[str, _load("Dtype of the computation.")] = "float32"
    param_dtype: Annotated[str, _load("Dtype of the stored parameters.")] = "float32"
    int8: Annotated[bool, _load("Store kernels and embeddings as int8 with scales.", "--int8")] = False
    int4: Annotated[bool, _load("Store kernels as int4 with scales of blocks, embeddings as int8.", "--int4")] = False
    dequantize: Annotated[bool, _load("Make floats of weights that are quantized in the files.", "--dequantize")] = (
        False
    )
    replicate_kv: Annotated[
        bool, _load("Keep key and value heads whole on each device: for tp beyond their number.", "--replicate-kv")
    ] = False
    split_residual: Annotated[
        bool,
        _load("Split activations over tp between layers, too: less memory, as many bytes sent.", "--split-residual"),
    ] = False
    scan_layers: Annotated[bool, _load("Stack equal layers: compiles faster.", "--scan-layers")] = False
    ignore: Annotated[
        str | None, _load("Leave out tensors without a place in the model that this pattern matches.")
    ] = None

    def __post_init__(self):
        """Refuses impossible combinations before anything is downloaded."""
        for dtype in (self.dtype, self.param_dtype):
            full_dtype(dtype)
        if self.mesh is not None:
            parse_mesh(self.mesh)

    @property
    def ignored(self) -> list[str]:
        """The patterns of tensors to leave out."""
        return [] if self.ignore is None else [self.ignore]

    def axes(self) -> PartitionAxis:
        """Returns the mesh axes that each logical axis is split over."""
        from easydel.sharding import PartitionAxis

        changes: dict[str, AxisName] = {"kv_head_axis": None} if self.replicate_kv else {}
        changes |= {"activation_hidden_axis": "tp"} if self.split_residual else {}
        return PartitionAxis(**changes)


@dataclass(frozen=True)
class Sampling:
    """The options of choosing tokens."""

    max_new_tokens: Annotated[int, _sample("At most this many tokens.", "--max-new-tokens", "-n")] = 256
    sample: Annotated[
        bool | None,
        _sample(
            "Sample as the checkpoint's generation_config says, changed by the options below; or always take the "
            "likeliest token, whatever it says. Default: greedy, unless one of temperature, top-k, top-p or min-p "
            "is given.",
            "--sample/--greedy",
        ),
    ] = None
    temperature: Annotated[float | None, _sample("Below 1: sharper; above: flatter; 0: greedy.")] = None
    top_k: Annotated[int | None, _sample("Choose among the k likeliest tokens.")] = None
    top_p: Annotated[float | None, _sample("Choose among the likeliest that together reach this probability.")] = None
    min_p: Annotated[float | None, _sample("Choose among those with this share of the top probability.")] = None
    repetition_penalty: Annotated[float | None, _sample("Above 1: what was said becomes less likely.")] = None
    stop: Annotated[
        list[str] | None, _sample("End the answer with this text; may be given several times.", "--stop")
    ] = None
    seed: Annotated[
        int | None, _sample("Of the random numbers; the same seed gives the same text. Default: a fresh one.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments for `generate`."""
        choices = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        chosen = {name: value for name, value in choices.items() if value is not None}
        if self.sample is False and chosen and self.temperature != 0:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise ArgumentError(f"{names} and --greedy exclude each other")
        cold = self.temperature == 0  # everybody's word for greedy
        more = {"repetition_penalty": self.repetition_penalty, "seed": self.seed, "stop_strings": self.stop or None}
        given = {name: value for name, value in more.items() if value is not None}
        sampled = not cold and (bool(self.sample) or bool(chosen))
        rules = {"do_sample": True, **chosen} if sampled else GREEDY
        return {"max_new_tokens": self.max_new_tokens, "num_beams": 1, **rules, **given}


@dataclass(frozen=True)
class Languages:
    """The languages of translation models that name them, as the checkpoint spells them."""

    src_lang: Annotated[str | None, _language("Language of what the encoder reads: eng_Latn, en_XX, en.")] = None
    tgt_lang: Annotated[str | None, _language("Language to translate to.")] = None


def parse_mesh(text: str) -> tuple[int, ...]:
    """Returns sizes of dp, fsdp, tp, sp from "1,2,4,1" or "fsdp=2,tp=4"; at most one is -1."""
    from easydel.sharding import AXES

    parts = [part.strip() for part in text.split(",")]
    names = [part.partition("=")[0].strip() if "=" in part else name for part, name in zip(parts, AXES, strict=False)]
    numbers = [part.rpartition("=")[2].strip() for part in parts]
    complete = all("=" in part for part in parts) or (len(parts) == len(AXES) and "=" not in text)
    known = len(parts) == len(set(names)) and set(names) <= set(AXES)
    if complete and known and all(re.fullmatch(r"-1|[1-9]\d{0,8}", number) for number in numbers):
        sizes = dict(zip(names, map(int, numbers), strict=True))
        if list(sizes.values()).count(-1) <= 1:
            return tuple(sizes.get(name, 1) for name in AXES)
    raise ArgumentError(
        f"--mesh {text!r} is no mesh",
        hint=f"give sizes of {','.join(AXES)} such as 1,2,4,1 or fsdp=2,tp=4, at most one of them -1",
    )


def full_dtype(name: str) -> str:
    """Returns a full name, "bfloat16" for "bf16". Raises ArgumentError for names that are no dtype of weights."""
    if name not in {*DTYPES, *DTYPES.values()}:
        raise ArgumentError(f"{name!r} is no dtype of weights", hint=f"use {', '.join(DTYPES.values())}")
    return DTYPES.get(name, name)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command` with each parameter that is a record replaced by the record's fields."""
    hints = get_type_hints(command, include_extras=True)
    records = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}

    @wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: record(**{field.name: values.pop(field.name) for field in fields(record)})
            for name, record in records.items()
        }
        with ExitStack() as around:
            for record in made.values():
                if isinstance(record, Processes):
                    around.enter_context(record.joined())
            command(**values, **made)

    parameters = [
        flat for parameter in signature(command).parameters.values() for flat in _flat(parameter, hints, records)
    ]
    for parameter in parameters:
        _without_type(parameter.annotation)
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _without_type(annotation: Any) -> None:
    """Keeps the help from showing a switch as "--int8 <bool>", as if it took a value."""
    kind, *more = get_args(annotation) or (annotation,)
    if kind in (bool, bool | None):
        for option in more:
            option.metavar = " "


def _flat(parameter: Parameter, hints: dict[str, Any], records: dict[str, type]) -> Iterator[Parameter]:
    if parameter.name not in records:
        yield parameter.replace(annotation=hints[parameter.name], kind=Parameter.KEYWORD_ONLY)
        return
    record: Any = records[parameter.name]
    types = get_type_hints(record, include_extras=True)
    for field in fields(record):
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
