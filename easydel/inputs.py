"""Checks of a model's inputs: ids, masks and positions of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel.errors import ArgumentError, listed

IDS = ("input_ids", "decoder_input_ids")
MASKS = ("attention_mask", "decoder_attention_mask", "global_attention_mask")
TOKEN_ARRAYS = (*IDS, *MASKS, "position_ids", "segment_ids", "labels")


EMBEDDED = "inputs_embeds"


def embedded(value: Any) -> jax.Array:
    """Returns vectors in place of tokens. Raises ArgumentError unless they are floats [batch, length, features]."""
    array = value if isinstance(value, jax.Array) else host_array(EMBEDDED, value)
    if array.ndim != 3 or not array.size or not jnp.issubdtype(array.dtype, jnp.floating):
        found = f"{EMBEDDED} is {array.dtype}{list(array.shape)}"
        raise ArgumentError(f"{found}, expected floats [batch, length, features]")
    return jnp.asarray(array)


def check_flags(**flags: Any) -> None:
    """Raises ArgumentError with all flags that are no bool: text such as "False" would count as true."""
    wrong = [f"{name}={value!r}" for name, value in flags.items() if not isinstance(value, bool | np.bool_)]
    if wrong:
        raise ArgumentError(f"{', '.join(wrong)}, expected True or False")


def token_array(name: str, value: Any, vocabulary: int) -> Any:
    """Returns an argument of `TOKEN_ARRAYS` as an array [batch, length]; any other unchanged.

    Raises ArgumentError for values that are no array, for another shape, for ids that are no integers, and for ids of
    no token. Ids are compared with the vocabulary only in numpy's arrays and lists: for JAX's arrays that would wait
    for their device.
    """
    if name == EMBEDDED:
        return embedded(value)
    if name not in TOKEN_ARRAYS:
        return value
    array = value if isinstance(value, jax.Array) else host_array(name, value)
    check_array(name, array)
    if name in IDS and isinstance(array, np.ndarray):
        check_tokens(name, array, vocabulary)
    return jnp.asarray(array)


def host_array(name: str, value: Any) -> np.ndarray:
    """Returns the argument as numpy's.

    Raises ArgumentError for text, for rows of unequal lengths, and for torch tensors that numpy cannot take.
    """
    if isinstance(value, Mapping):
        raise ArgumentError(f"{name} is a {type(value).__name__}", hint="pass its entries: model(**inputs)")
    if isinstance(value, str) or (isinstance(value, Sequence) and any(isinstance(entry, str) for entry in value)):
        hint = "load_tokenizer(...) makes token ids of text: model.generate(**tokenizer(texts, padding=True))"
        raise ArgumentError(f"{name} is text, expected token ids [batch, length]", hint=hint)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ArgumentError(f"{name} is no array ({error})", hint="pad shorter rows on the left") from None
    except (TypeError, RuntimeError) as error:
        raise ArgumentError(f"{name} is no array ({error})", hint="pass one of numpy or JAX") from None


def check_array(name: str, array: Any) -> None:
    """Raises ArgumentError unless the array is [batch, length], not empty, and of numbers (for ids: of integers)."""
    if array.ndim != 2:
        hint = f"pass {name}[None] for one sequence" if array.ndim == 1 else None
        raise ArgumentError(f"{name} has shape {array.shape}, expected [batch, length]", hint=hint)
    if array.size == 0:
        raise ArgumentError(f"{name} is empty: its shape is {array.shape}", hint="begin with one token at least")
    if name.endswith("ids") and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ArgumentError(f"{name} is {array.dtype}, expected integers")
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.number):
        raise ArgumentError(f"{name} is {array.dtype}, expected numbers")


def check_tokens(name: str, ids: np.ndarray, vocabulary: int) -> None:
    """Raises ArgumentError with the first of `ids` [batch, length] that is no token."""
    if ids.min() < 0 or ids.max() >= vocabulary:
        row, column = np.argwhere((ids < 0) | (ids >= vocabulary))[0]
        raise ArgumentError(
            f"{name}[{row}, {column}] is {ids[row, column]}, outside the vocabulary of {vocabulary} tokens"
        )


def check_shapes(shape: tuple[int, ...], arrays: Mapping[str, Any], *, cached: bool) -> None:
    """Raises ArgumentError unless all `arrays` have the `shape` of the ids or are None; positions may have one row."""
    for name, array in arrays.items():
        if array is None or array.shape == shape or (name == "position_ids" and array.shape == (1, shape[1])):
            continue
        hint = "with a cache, it is that of the new tokens alone" if cached else None
        raise ArgumentError(f"{name} has shape {array.shape}, expected {shape} as the ids", hint=hint)


def check_params(known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ArgumentError unless `given` has the paths of `known`."""
    missing = [f"{path} is missing" for path in known if path not in given]
    unknown = [f"{path} is not the model's" for path in given if path not in known]
    if missing or unknown:
        raise ArgumentError(f"params are not those of the model:{listed([*missing, *unknown], 4)}")


def check_stored(known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ArgumentError unless `given` has the paths, shapes and kinds of dtypes (int8, float, ...) of `known`."""
    check_params(known, given)
    problems = []
    for path, leaf in given.items():
        if tuple(leaf.shape) != tuple(known[path].shape):
            problems.append(f"{path} is {list(leaf.shape)}, the model's {list(known[path].shape)}")
        elif leaf.dtype != known[path].dtype and not _are_floats(leaf.dtype, known[path].dtype):
            problems.append(f"{path} is {leaf.dtype}, the model's {known[path].dtype}")
    if problems:
        raise ArgumentError(f"params are not those of the model:{listed(problems, 4)}")


def _are_floats(*dtypes: Any) -> bool:
    return all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)


@contextmanager
def donations_explained() -> Iterator[None]:
    """Explains JAX's error about a donated array: it tells where the current parameters are."""
    try:
        yield
    except RuntimeError as error:
        if "has been deleted" not in str(error):
            raise
        hint = "after a training step, the model's parameters are state.params"
        raise ArgumentError(f"an array was given up (donated) to a program: {error}", hint=hint) from None
