"""The agreement of all processes on what they are about to do: where they differ, all raise an error that says how."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easydel.errors import ProcessError, listed
from easydel.processes.client import client_of
from easydel.processes.meetings import MEETINGS

SWITCH = "EASYDEL_CHECK_PROCESSES"
LONGEST = 100


def agree(what: str, facts: Mapping[str, Any], check: Callable[[], object] = lambda: None) -> None:
    """Waits until all processes have called this, and compares what they are about to do, and their `facts`.

    Raises ProcessError in each of them if one has other facts than process 0; `check` is called while it waits, and may
    raise what happened to another process. Does nothing without `jax.distributed`,
    or with the environment variable EASYDEL_CHECK_PROCESSES=0, which all processes need to have.
    """
    client = client_of()
    if client is None or os.environ.get(SWITCH) == "0":
        return
    told = json.dumps({"what": what} | {name: str(fact) for name, fact in facts.items()})
    said = {process: json.loads(text) for process, text in sorted(MEETINGS.meet(client, told, check).items())}
    problems = [problem for process in said for problem in _differences(process, said[process], said[0])]
    if problems:
        hint = "every process has to run the same lines, with the same model and inputs"
        raise ProcessError(f"the processes differ:{listed(problems)}\n", hint=hint)


def check_inputs(mesh: Mesh | None, what: str, inputs: Mapping[str, Any]) -> None:
    """Compares inputs, which all processes have to give whole, if `mesh` has devices of several.

    Arrays that are spread over processes already cannot be compared, and are left out.
    """
    if mesh is None or not mesh.is_multi_process:
        return
    whole = {name: value for name, value in inputs.items() if getattr(value, "is_fully_addressable", True)}
    agree(what, {name: _told(value) for name, value in whole.items()})


def digest(value: Any) -> str:
    """Returns a short text that differs where the bytes of an array, or the text of another value, differ."""
    data = np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return f"digest {hashlib.sha256(data).hexdigest()[:12]}"


def _told(value: Any) -> str:
    if not isinstance(value, jax.Array | np.ndarray):
        return str(value)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return f"{array.dtype}{list(array.shape)}, {digest(array)}"


def _differences(process: int, said: Mapping[str, str], first: Mapping[str, str]) -> list[str]:
    if said["what"] != first["what"]:
        return [f"process {process} is about to {said['what']}, process 0 to {first['what']}"]
    return [
        f"{name}: {_cut(said.get(name))} in process {process}, {_cut(first.get(name))} in process 0"
        for name in dict.fromkeys([*first, *said])
        if said.get(name) != first.get(name)
    ]


def _cut(value: str | None) -> str:
    text = "nothing" if value is None else value
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
