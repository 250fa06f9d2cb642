"""The command `easydel`: one file per command; JAX is imported inside them, so that --help answers at once."""

from easydel.cli.app import main

__all__ = ["main"]
