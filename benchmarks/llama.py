"""llama.cpp, where its Python package is installed: a model as float32 GGUF, and greedy decoding of batches.

    python benchmarks/llama.py directory     (the program that cold.py times: it prints the first token of an answer)

It is called through the functions of its C library: the package's own class has no batches, and does work for each
token that is not llama.cpp's. Keys and values are float32 as in the other engines; llama.cpp's default is float16.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

INSTALLED = find_spec("llama_cpp") is not None
NOTE = (
    f"llama.cpp is that of llama-cpp-python {version('llama_cpp_python')}, with keys and values in float32."
    if INSTALLED
    else "Without llama.cpp: its Python package, llama-cpp-python, is not installed."
)
FILE = "model.gguf"
ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
SHORTEST = 256  # the least tokens of each sequence that a context has room for; llama.cpp rounds up to multiples of it


def write_model(directory: str) -> None:
    """Writes FILE beside the weights of a Llama in `directory`: the same in float32, with a dummy vocabulary."""
    from transformers import AutoModelForCausalLM

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from gguf_files import TINY, write_gguf

    write_gguf(Path(directory, FILE), TINY["llama"], AutoModelForCausalLM.from_pretrained(directory))


class Llama:
    """A model in memory, and a context for each size of batch in use."""

    def __init__(self, directory: str):
        import llama_cpp

        self.cpp, self.log = llama_cpp, llama_cpp.llama_log_callback(log_errors)
        llama_cpp.llama_log_set(self.log, None)
        llama_cpp.llama_backend_init()
        file = os.fsencode(Path(directory, FILE))
        self.model = llama_cpp.llama_model_load_from_file(file, llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {directory}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = cache(self._context)

    def generate(self, ids_BT: np.ndarray, new: int) -> np.ndarray:
        """Returns the prompts, and the `new` likeliest tokens after each."""
        length = ids_BT.shape[1]
        context = self.context(len(ids_BT), max(SHORTEST, 1 << (length + new - 1).bit_length()))
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(context), False)
        parts, start = [ids_BT], 0
        for _ in range(new):
            parts.append(self._read(context, parts[-1], start))
            start += parts[-2].shape[1]
        return np.concatenate(parts, axis=1)

    def _context(self, batch: int, length: int) -> Any:
        """Returns a context with room for `length` tokens of each sequence, all of which may be read at once."""
        options = self.cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = batch * length
        options.n_seq_max = batch
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        options.type_k = options.type_v = self.cpp.GGML_TYPE_F32
        context = self.cpp.llama_init_from_model(self.model, options)
        if not context:
            raise SystemExit(f"llama.cpp has no context for {batch} x {length} tokens")
        return context

    def _read(self, context: Any, ids_BT: np.ndarray, start: int) -> np.ndarray:
        """Appends tokens to the sequences, from position `start` on. Returns the likeliest next ones, [batch, 1]."""
        B, T = ids_BT.shape
        batch = self.cpp.llama_batch_init(B * T, 0, 1)
        batch.n_tokens = B * T
        for place, token in enumerate(ids_BT.flat):
            row, column = divmod(place, T)
            batch.token[place], batch.pos[place] = int(token), start + column
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = column == T - 1
        failed = self.cpp.llama_decode(context, batch)
        self.cpp.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"llama.cpp cannot decode: {failed}")
        logits_BV = np.ctypeslib.as_array(self.cpp.llama_get_logits(context), (B, self.vocabulary))
        return logits_BV.argmax(axis=1)[:, None]


def log_errors(level: int, text: bytes, _: Any) -> None:
    if level == ERROR:
        sys.stderr.write(text.decode())


if __name__ == "__main__":
    print("token", Llama(sys.argv[1]).generate(np.arange(100, 100 + int(sys.argv[2]))[None], 1)[0, -1], flush=True)
