"""Reports all problems of a mesh, rules or shapes in one error."""

from __future__ import annotations

from collections.abc import Sequence

from easydel.errors import ShardingError, listed


def refuse(problems: Sequence[str], hint: str | None = None) -> None:
    """Raises one ShardingError that lists every problem, if there is any."""
    if len(problems) == 1:
        raise ShardingError(problems[0], hint=hint)
    if problems:
        raise ShardingError(f"{len(problems)} problems{listed(problems)}", hint=hint)
