"""Measures reading a prompt with each kind of mixer: ours, and transformers' PyTorch path, in turn on the CPU.

    python benchmarks/mixers.py [--repeat 5] [--length 4096] [--only mamba,rwkv] [--output out.json] [--force]

Random models of two layers, 512 features, float32. Also the temporaries of the compiled prompt at half, once and twice
the length, and the decode's state at these lengths: the first should double, the second stay (for windows: while the
prompt is longer than they are). Where a mixer needs keys of all tokens, its state grows with them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, Worker, quiet_machine, show, write
from turns import ratios, spread

LINEAR, FULL = "linear_attention", "full_attention"
BASE = {
    "vocab_size": 997,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 16384,
}
WIDE = {"intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
DELTA = {"linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
LATENT = {"kv_lora_rank": 128, "q_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
INDEXED = {"index_topk": 512, "index_head_dim": 64, "index_n_heads": 4, "num_key_value_heads": 8}
KDA = {**LATENT, "q_lora_rank": None, "linear_num_heads": 8, "linear_head_dim": 64, "num_key_value_heads": 8}
CHUNKED = {"attention_chunk_size": 512, "intermediate_size_mlp": 1024, "moe_layers": [], "num_local_experts": 2}
# name -> model type and its config
MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gated delta rule": ("qwen3_5_text", {**WIDE, **DELTA, "layer_types": [LINEAR] * 2}),
    "delta rule by channels (KDA)": (
        "kimi_linear",
        {
            **WIDE,
            **KDA,
            "layer_types": [LINEAR] * 2,
            "mlp_layer_types": ["dense"] * 2,
            "num_experts": 2,
            "num_experts_per_token": 1,
        },
    ),
    "Mamba": ("mamba", {"state_size": 16}),
    "Mamba 2": ("mamba2", {"num_heads": 16, "head_dim": 64, "state_size": 64, "n_groups": 1, "chunk_size": 256}),
    "RG-LRU": ("recurrent_gemma", {**WIDE, "lru_width": 512, "block_types": ["recurrent"]}),
    "lightning attention": (
        "minimax",
        {**WIDE, "layer_types": [LINEAR] * 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "short convolution": ("lfm2", {**WIDE, "layer_types": ["conv"] * 2}),
    "RWKV-4": ("rwkv", {"context_length": 16384, "intermediate_size": 1024}),
    "xLSTM": ("xlstm", {"num_heads": 4}),
    "chunked attention": ("llama4_text", {**WIDE, **CHUNKED, "no_rope_layers": [1, 1]}),
    "sliding attention": ("mistral", {**WIDE, "sliding_window": 512}),
    "sparse attention (indexer)": (
        "deepseek_v32",
        {
            **WIDE,
            **LATENT,
            **INDEXED,
            "mlp_layer_types": ["dense"] * 2,
            "n_routed_experts": 8,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
}


def make_models(directory: str, names: list[str]) -> None:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    for name in names:
        model_type, own = MIXERS[name]
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **BASE | own)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(Path(directory, name))


class Torch:
    def __init__(self) -> None:
        import os

        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def load(self, directory: Path) -> dict[str, Any]:
        import torch
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        last = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        # transformers' cache wants a layer of attention in each model
        self.options: dict[str, Any] = {"use_cache": False, **({"logits_to_keep": 1} if last else {})}
        return {}

    def first(self, ids: np.ndarray) -> int:
        import torch

        with torch.no_grad():
            return int(self.model(torch.tensor(ids), **self.options).logits[0, -1].argmax())


class Ours:
    def load(self, directory: Path) -> dict[str, Any]:
        from easydel import AutoEasyDeLModelForCausalLM

        self.model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(directory, progress=False)
        return {}

    def first(self, ids: np.ndarray) -> int:
        return int(self.model.generate(ids, max_new_tokens=1, do_sample=False, eos_token_id=None).sequences[0, -1])

    def memory(self, length: int) -> tuple[int, int]:
        """Returns bytes of temporaries of a compiled prompt, and of the state that decoding starts with."""
        import jax

        from easydel.generate.programs import prefill
        from easydel.generate.prompt import Prompt
        from easydel.ops.sampling import Rules

        prompt = Prompt(np.zeros((1, length), np.int32), np.ones((1, length), bool))
        program: Any = self.model.compiled(prefill)
        temporary = program.lower(self.model.params, prompt, None, Rules()).compile().memory_analysis()
        cache = jax.eval_shape(lambda: self.model.init_cache(1, length))
        return temporary.temp_size_in_bytes, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def serve(engine: str, directory: str) -> None:
    """Answers each line on stdin: ["load", name], ["first", length] with seconds, or ["memory", length]."""
    worker: Any = {"torch": Torch, "easydel": Ours}[engine]()
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        order, value = json.loads(line)
        if order == "load":
            answer: Any = worker.load(Path(directory, value))
        elif order == "memory":
            answer = worker.memory(value)
        else:
            ids = np.random.default_rng(value).integers(3, BASE["vocab_size"], (1, value))
            start = time.perf_counter()
            token = worker.first(ids)
            answer = {"seconds": time.perf_counter() - start, "token": token}
        print(json.dumps(answer), flush=True)


def measure(name: str, engines: dict[str, Worker], length: int, repeat: int) -> dict[str, Any]:
    for engine in engines.values():
        engine.ask(["load", name])
    answers = {engine: worker.ask(["first", length])["token"] for engine, worker in engines.items()}  # may compile
    rounds = [{e: worker.ask(["first", length])["seconds"] for e, worker in engines.items()} for _ in range(repeat)]
    memory = {size: engines["easydel"].ask(["memory", size]) for size in (length // 2, length, 2 * length)}
    return {"rounds": rounds, "tokens": answers, "memory": memory}


def row(name: str, result: dict[str, Any]) -> list[str]:
    seconds = {engine: statistics.median(one[engine] for one in result["rounds"]) for engine in ("torch", "easydel")}
    temporary, state = zip(*result["memory"].values(), strict=True)
    same = "same" if len(set(result["tokens"].values())) == 1 else "DIFFER"
    times = [f"{1e3 * seconds[engine]:.0f}" for engine in ("torch", "easydel")]
    growth = [" / ".join(f"{size / 2**20:.0f}" for size in temporary), f"{temporary[2] / temporary[1]:.2f}"]
    return [name, *times, *spread(ratios(result, "torch", "easydel")), *growth, state_text(state), same]


def state_text(state: tuple[int, ...]) -> str:
    return f"{state[0] / 2**20:.2f}" if len(set(state)) == 1 else " / ".join(f"{size / 2**20:.2f}" for size in state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--only", default="", help="parts of names, with commas between them")
    parser.add_argument("--output", type=Path, help="write what was measured to this JSON file")
    parser.add_argument("--force", action="store_true", help="run although the machine is busy")
    chosen = parser.parse_args()
    machine = quiet_machine(force=chosen.force)
    names = [name for name in MIXERS if any(part.lower() in name.lower() for part in chosen.only.split(","))]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        make_models(directory, names)
        engines = {engine: Worker(__file__, "serve", engine, directory) for engine in ("torch", "easydel")}
        for name in names:
            results[name] = measure(name, engines, chosen.length, chosen.repeat)
            print(*row(name, results[name]), sep=" | ", flush=True)
        for engine in engines.values():
            engine.close()
    sizes = " / ".join(str(size) for size in (chosen.length // 2, chosen.length, 2 * chosen.length))
    columns = ["mixer", "torch ms", "ours ms", "torch / ours", "min", "max", f"temporaries MiB at {sizes}"]
    columns += ["twice the tokens", "state MiB", "token"]
    bars = {name: statistics.median(ratios(result, "torch", "easydel")) for name, result in results.items()}
    notes = [
        f"Two layers of 512 features, {chosen.length} tokens, float32; a state of one number is that of every length."
    ]
    rows = [row(name, result) for name, result in results.items()]
    measured = Measured("Reading a prompt, by kind of mixer", columns, rows, bars, "speed / torch's", notes)
    show(measured)
    if chosen.output:
        write(chosen.output, measured, machine, results=results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        main()
