"""Text on stdout while tokens are made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from easydel.errors import ArgumentError

if TYPE_CHECKING:
    from easydel.model import BaseNNXModule
    from easydel.tokenizer import Tokenizer

Tokens = SimpleQueue[int | None]
GLOBAL = "global_tokens"


def compiled_for(prompt: Sequence[int], arguments: dict[str, Any]) -> Callable[..., None]:
    """Returns a function that compiles, while a model loads, the programs of `answer` for this prompt and arguments."""
    _check(prompt)
    from easydel.generate import compile_ahead

    streamer = None if _searches(arguments) else lambda tokens: None
    return compile_ahead(_batch(prompt), streamer=streamer, **_given(prompt, arguments))


def answer(
    model: BaseNNXModule,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    arguments: dict[str, Any],
    *,
    silent: bool = False,
) -> tuple[str, int]:
    """Writes the model's continuation of the ids `prompt` to stdout, piece by piece, unless `silent`.

    Returns it, and its number of tokens. The tokens are decoded in a separate thread: `generate` pushes them, while the
    tokenizer pulls. With several beams they come all at once, at the end.
    """
    _check(prompt)
    if _searches(arguments):
        found = model.generate(_batch(prompt), **_given(prompt, arguments)).sequences[0]
        made = found[1 if model.record.has_encoder else len(prompt) :].tolist()
        text = tokenizer.decode(made)
        if not silent:
            sys.stdout.write(text)
        return text, len(made)
    tokens: Tokens = SimpleQueue()
    count = 0
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(_write, tokenizer, tokens, silent)

        def arrived(batch: np.ndarray) -> None:
            nonlocal count
            if written.done():  # only an error ends it early, such as a reader of stdout that left
                written.result()
            count += 1
            tokens.put(int(np.asarray(batch)[0]))

        try:
            model.generate(_batch(prompt), streamer=arrived, **_given(prompt, arguments))
        finally:
            tokens.put(None)
        return written.result(), count


def _check(prompt: Sequence[int]) -> None:
    if not prompt:
        raise ArgumentError("the prompt is empty")


def _searches(arguments: dict[str, Any]) -> bool:
    return arguments.get("num_beams", 1) > 1


def _batch(prompt: Sequence[int]) -> np.ndarray:
    return np.asarray([prompt], np.int32)


def _given(prompt: Sequence[int], arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what `generate` gets: `global_tokens` among the arguments counts the first tokens that see all others."""
    given = {name: value for name, value in arguments.items() if name != GLOBAL}
    if count := arguments.get(GLOBAL):
        given["global_attention_mask"] = np.arange(len(prompt))[None] < count
    return given


def _write(tokenizer: Tokenizer, tokens: Tokens, silent: bool) -> str:
    pieces: list[str] = []
    for piece in tokenizer.stream(_until_none(tokens)):
        pieces.append(piece)
        if not silent:
            sys.stdout.write(piece)
            sys.stdout.flush()
    return "".join(pieces)


def _until_none(tokens: Tokens) -> Iterator[int]:
    while (token := tokens.get()) is not None:
        yield token
