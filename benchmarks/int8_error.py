"""Measures the accuracy of 8-bit storage: a real model's next-token distributions against its float32 ones.

    python benchmarks/int8_error.py MODEL.gguf

Ours has one scale per output row. It is compared with GGUF's Q8_0 (one scale per 32 weights) and PyTorch's dynamic int8
(one scale per matrix, activations in 8 bits too), made from the same float32 weights.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easydel import AutoEasyDeLModelForCausalLM, load_tokenizer
from easydel.tree import flatten, unflatten

TEXT = """The sun was setting behind the hills when the old fisherman pulled his boat ashore. He had been out since
dawn, and his nets were nearly empty. Photosynthesis is the process by which plants convert light into
chemical energy, storing it in molecules of sugar. In 1969 two astronauts walked on the Moon while a third one
waited in orbit. def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2). The committee
will meet on Tuesday to discuss the budget; all members are asked to send their questions in advance. Water
boils at 100 degrees Celsius at sea level, but at lower temperatures on high mountains. To make bread you need
flour, water, salt and yeast, some patience, and a hot oven."""


def compare(logits: Any, reference: Any) -> tuple[float, float, float]:
    """Returns mean and largest KL divergence in nats from the reference, and the share of equal likeliest tokens."""
    ours, theirs = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in (logits, reference))
    kl = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    same = jnp.mean(jnp.argmax(ours, -1) == jnp.argmax(theirs, -1))
    return float(kl.mean()), float(kl.max()), float(same)


def q8_0(params: Any) -> Any:
    """Converts every kernel and embedding to GGUF's Q8_0 and back."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType.Q8_0
    changed = {
        path: jnp.asarray(quants.dequantize(quants.quantize(np.asarray(leaf), kind), kind)) if leaf.ndim == 2 else leaf
        for path, leaf in flatten(params).items()
    }
    return unflatten(changed)


def torch_dynamic(model: Any, ids: np.ndarray, folder: str) -> np.ndarray:
    """Returns logits of PyTorch's dynamic quantization of the exported model."""
    import torch
    import transformers

    model.export(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(reference, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        return quantized(torch.tensor(ids)).logits.numpy()


def main(path: str) -> None:
    import tempfile

    from rich.console import Console
    from rich.table import Table

    ids = np.array([load_tokenizer(path).encode(TEXT)])
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(path)
    reference = model(ids).logits
    rows = {}
    for name, targets in {"ours, all": None, "ours, kernels only": ["kernel"]}.items():
        int8, _ = AutoEasyDeLModelForCausalLM.from_pretrained(path, load_in_8bit=True, bit_targeted_params=targets)
        rows[name] = compare(int8(ids).logits, reference)
    rows["GGUF Q8_0 blocks, all"] = compare(model.apply(q8_0(params), ids).logits, reference)
    with tempfile.TemporaryDirectory() as folder:
        rows["PyTorch dynamic int8"] = compare(torch_dynamic(model, ids, folder), reference)
    table = Table(
        "storage", "mean KL, nats", "largest KL", "same likeliest token", title=f"{ids.shape[1]} tokens of English"
    )
    for name, (mean, largest, same) in rows.items():
        table.add_row(name, f"{mean:.5f}", f"{largest:.4f}", f"{same:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1])
