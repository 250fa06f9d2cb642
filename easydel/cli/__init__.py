"""The command `easydel`, with one file per command. JAX is imported inside commands, so that --help answers at once."""

from easydel.cli.app import main

__all__ = ["main"]
