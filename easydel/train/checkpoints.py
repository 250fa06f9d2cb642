"""The checkpoints of a training: what it has learned so far, where it is in its data, and what it was started with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.errors import ArgumentError, CheckpointError, listed
from easydel.train.reading import needed
from easydel.train.state import State, without_arrays
from easydel.tree import Tree

CHECKPOINTS = "checkpoints"
BEST = "best"
# What is compared by a number that depends on every bit of it: the number itself says nothing to a reader.
HASHED = {
    "data": "the data is another (other examples, another tokenizer, or in another order)",
    "parameters": "the trained parameters or the optimizer's state have other names, shapes or dtypes",
    "frozen parameters": "the parameters that are not trained have other values",
}


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores states in a directory. `marks` determine the losses of a run, so they must be equal to go on.

    `steps` is the planned number of steps. `best`, if there is one, keeps the parameters of the best evaluation.
    """

    manager: Any
    best: Any
    directory: Path
    marks: Mapping[str, Any]
    steps: int

    def save(self, state: State, data: Any) -> None:
        """Saves what is learned, and the position in the data."""
        ocp = needed("orbax.checkpoint")
        place = {"marks": self.marks, "data": data.get_state(), "steps": self.steps}
        learned = {"trained": state.trained, "moments": state.moments, "count": state.count}
        args = ocp.args.Composite(state=ocp.args.StandardSave(learned), place=ocp.args.JsonSave(place))
        try:
            self.manager.save(int(state.count), args=args)
        except OSError as error:
            raise CheckpointError(f"cannot be written: {error}", file=self.directory / CHECKPOINTS) from error

    def resumed(self, state: State, data: Any) -> tuple[State, int | None]:
        """Returns the state of the last checkpoint, and the number of steps that it was made for; moves `data` there.

        Without a checkpoint, returns the given state and None.
        """
        ocp = needed("orbax.checkpoint")
        last = self.manager.latest_step()
        if last is None:
            return state, None
        place = self.manager.restore(last, args=ocp.args.Composite(place=ocp.args.JsonRestore())).place
        if other := _differences(place["marks"], self.marks):
            raise ArgumentError(
                f"holds another training, so that it cannot be gone on with:{listed(other)}",
                file=self.directory,
                hint="use another directory, or what that training was started with",
            )
        shapes = without_arrays(state)
        wanted = {"trained": shapes.trained, "moments": shapes.moments, "count": shapes.count}
        restored = self.manager.restore(last, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))).state
        data.set_state(place["data"])
        return replace(state, **restored), place.get("steps", self.steps)

    def keep_best(self, trained: Tree, count: int) -> None:
        """Saves trained parameters as the best so far; they have learned for `count` steps."""
        ocp = needed("orbax.checkpoint")
        try:
            self.best.save(count, args=ocp.args.StandardSave(trained))
        except OSError as error:
            raise CheckpointError(f"cannot be written: {error}", file=self.directory / BEST) from error

    def kept_best(self, trained: Tree, count: int) -> Tree | None:
        """Returns the parameters that were saved as the best after `count` steps, if they are the last so saved.

        `trained` has their shapes and shardings.
        """
        if self.best.latest_step() != count:
            return None
        return self.best.restore(count, args=needed("orbax.checkpoint").args.StandardRestore(without_arrays(trained)))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    other = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    return [HASHED.get(name, f"{name} was {before.get(name)!r}, is {now.get(name)!r}") for name in other]


def marked(state: State, source: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that determines the losses of a run, as JSON has it; `source` has arrays as its fields."""
    shapes = jax.tree_util.tree_flatten_with_path(without_arrays(state))[0]
    kinds = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in shapes]
    data = hashlib.sha256()
    for value in vars(source).values():
        data.update(np.ascontiguousarray(value, np.int32).tobytes() if isinstance(value, np.ndarray) else b"")
    marks = {
        "data": data.hexdigest(),
        "parameters": hashlib.sha256(repr(kinds).encode()).hexdigest(),
        "frozen parameters": hashlib.sha256(repr(_sums(state.frozen)).encode()).hexdigest(),
        **more,
    }
    return json.loads(json.dumps(marks))


def _sums(tree: Any) -> list[int]:
    """Returns a number for each array that depends on each of its bits, but not on how the array is split."""
    return [int(_sum_of_bits(leaf)) for leaf in jax.tree.leaves(tree)]


@jax.jit
def _sum_of_bits(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, f"uint{min(8 * array.dtype.itemsize, 32)}")
    place = jnp.zeros(bits.shape, jnp.uint32)  # index among all elements; a reshape would gather split arrays
    for dim, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


@contextmanager
def checkpoints(
    folder: Path, marks: Mapping[str, Any], *, steps: int, keep: int, best: bool = False
) -> Iterator[Checkpoints]:
    """Yields the checkpoints in a directory, which is made if it is not there; the last `keep` are kept.

    With `best`, so are the parameters that are best so far.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs every file
    with _managed(folder / CHECKPOINTS, keep) as manager:
        if not best:
            yield Checkpoints(manager, None, folder, marks, steps)
            return
        with _managed(folder / BEST, 1) as bests:
            yield Checkpoints(manager, bests, folder, marks, steps)


@contextmanager
def _managed(folder: Path, keep: int) -> Iterator[Any]:
    ocp = needed("orbax.checkpoint")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        # a save in the background would read arrays that the next step, by donation, overwrites
        enable_async_checkpointing=False,
    )
    try:
        manager = ocp.CheckpointManager(folder.absolute(), options=options)
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error}", file=folder.parent) from error
    try:
        yield manager
    finally:
        manager.close()
