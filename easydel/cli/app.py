"""The group of commands, and the handling of errors."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import easydel
from easydel.cli.chat import chat
from easydel.cli.doctor import doctor
from easydel.cli.evaluate import evaluate
from easydel.cli.export import export
from easydel.cli.families import families
from easydel.cli.generate import generate
from easydel.cli.inspect import inspect
from easydel.cli.options import expanded
from easydel.cli.plan import plan
from easydel.cli.plot import plot
from easydel.cli.train import train
from easydel.cli.verify import verify
from easydel.errors import EasyDeLError

# What arguments of Python become on the command line where the names differ: the option's own name in Python.
RENAMED = {"load_in_8bit": "int8", "sharding_axis_dims": "mesh", "do_sample": "sample"}
REFUSED = 2  # the exit code of wrong arguments
INTERRUPTED = 130  # 128 + SIGINT, as in shells
DEBUG = "--debug"


class Commands(TyperGroup):
    """The group of commands, which reports errors in one line and accepts --debug anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        own = [arg for arg in args[:end] if arg != DEBUG]
        return super().parse_args(ctx, [DEBUG] * (len(own) < end) + own + args[end:])

    def invoke(self, ctx: Any) -> Any:
        with told(debug=ctx.params["debug"], options=lambda: self._options(ctx)):
            return super().invoke(ctx)

    def _options(self, ctx: Any) -> dict[str, str]:
        """Returns the options of the invoked command, by the names that they have in Python."""
        command = self.get_command(ctx, ctx.invoked_subcommand) if ctx.invoked_subcommand else None
        longest = [(one.name, max(one.opts, key=len)) for one in command.params if one.name] if command else []
        own = {name: option for name, option in longest if option.startswith("--")}
        return {name: own[option] for name, option in RENAMED.items() if option in own} | own


@contextmanager
def told(*, debug: bool, options: Callable[[], Mapping[str, str]] = dict) -> Iterator[None]:
    """Reports errors that are no bugs as one message on stderr, and exits; with `debug` it raises them unchanged.

    Arguments of Python are called in it what they are on the command line, as `options` says.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # the reader of our output has left, and the caller of this function handles that
    except (EasyDeLError, OSError) as error:
        if debug:
            raise
        print(f"easydel: {as_options(str(error), options())}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None


def as_options(message: str, options: Mapping[str, str]) -> str:
    """Returns a message with "--top-k 0" for "top_k=0", "--int8" for "load_in_8bit=True".

    Words that Python and people share ("seed") are only taken for arguments where a value follows.
    """
    for name, option in options.items():
        end = r"(?![\w./])" if "_" in name else r"(?==)"
        message = re.sub(rf"(?<![\w./-]){name}{end}(=True\b)?", option, message)
        message = re.sub(rf"(?<![\w-]){re.escape(option)}=(?=[^\s=])", f"{option} ", message)
    return message


def _version(asked: bool) -> None:
    if asked:
        print(f"easydel {easydel.__version__}")
        raise typer.Exit


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error; also after a command.")] = False,
) -> None:
    """Hugging Face language models in JAX: load, shard, generate, train, check and convert.

    MODEL is a Hub id, a directory, or one .safetensors, .gguf or .bin file. Results go to stdout, all else to stderr.
    """


for command in (generate, chat, inspect, plan, train, verify, export, families, doctor):
    app.command()(expanded(command))
app.command("eval")(expanded(evaluate))
app.command()(expanded(plot))


def main() -> None:
    """Runs the command with the arguments of this process."""
    warnings.showwarning = _warn
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("easydel").setLevel(logging.INFO)
    try:
        app()
    except KeyboardInterrupt:  # before a command began
        sys.exit(INTERRUPTED)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning without the line of our source that raised it."""
    print(f"easydel: warning: {message}", file=sys.stderr)
