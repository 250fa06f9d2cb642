"""PEFT as the oracle: what it computes with its files, and that it loads ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from easydel import AutoEasyDeLModelForCausalLM, AutoEasyDeLModelForSeq2SeqLM
from easydel.lora import LoRA, add_adapters, load_adapters, save_adapters
from easydel.train import init_state, step

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning", "ignore:Setting `save_embedding"),
    pytest.mark.filterwarnings(
        "ignore:Model has `tie_word_embeddings=True`", "ignore:fan_in_fan_out", "ignore::DeprecationWarning"
    ),
    # of experts' parameters, whose patterns it honours all the same
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys"),
]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4),
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama",
        {"rank_pattern": {"0.self_attn.q_proj": 6}, "alpha_pattern": {"v_proj": 32}, "use_rslora": True},
    ),
    "dora, modules, tokens": ("llama", {"use_dora": True, "modules_to_save": ["lm_head", "norm"]}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True}),
    "tokens": ("tied", {"trainable_token_indices": [3, 7]}),
    "tied": ("tied", {"target_modules": ["embed_tokens"]}),
    "tied, whole": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "biases": ("qwen2", {"bias": "all"}),
    "biases of adapters": ("qwen2", {"lora_bias": True}),
    "fused": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "router": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
}
AS_READ_ONLY = {"tokens", "tied, whole", "biases of adapters", "router"}  # `load_adapters` refuses these by name
IDS = np.random.default_rng(0).integers(3, 90, (1, 7))


def base(directory: Path, name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1 if parameter.ndim == 1 else 0))
    model.save_pretrained(directory)


def theirs(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft(tmp_path: Path, kind: str):
    name, choice = KINDS[kind]
    base(tmp_path / "base", name)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, task_type="CAUSAL_LM", **({"target_modules": ["q_proj", "v_proj"]} | choice)
    )
    adapted = peft.get_peft_model(theirs(tmp_path / "base"), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    read, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "adapter", precision="highest")
    np.testing.assert_allclose(read(IDS).logits, expected, rtol=0, atol=2e-5)
    if kind in AS_READ_ONLY:
        return
    live, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "base", precision="highest")
    load_adapters(live, tmp_path / "adapter")
    np.testing.assert_allclose(live(IDS).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("qwen2", {"target_modules": ["q_proj", "up_proj", "embed_tokens"], "use_dora": True, "bias": "lora_only"}),
        ("llama", {"rank_pattern": {"q_proj": 5}, "modules_to_save": ["model.norm"], "lora_dropout": 0.1}),
        ("gpt2", {"target_modules": ["q_proj", "c_fc"]}),
        ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    ],
)
def test_what_is_trained_here_loads_in_peft(tmp_path: Path, name: str, choice: dict[str, Any]):
    base(tmp_path / "base", name)
    model, _ = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path / "base", precision="highest")
    before = np.asarray(model(IDS).logits)
    state = init_state(model, add_adapters(model, LoRA(r=3, lora_alpha=9, **choice)), optax.adam(0.02))
    run = step(model, optax.adam(0.02))
    for _ in range(2):
        state, _ = run(state, {"input_ids": IDS})
    ours = np.asarray(model.apply(state.params, IDS).logits)
    assert np.abs(ours - before).max() > 0.02
    save_adapters(model, tmp_path / "adapter", state.params)
    loaded = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), str(tmp_path / "adapter"))
    np.testing.assert_allclose(logits(loaded), ours, rtol=0, atol=2e-5)


def test_adapters_of_both_towers_and_between_them_load_in_peft(tmp_path: Path):
    sizes: dict[str, Any] = {
        "vocab_size": 96,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_position_embeddings": 64,
    }
    sizes |= {f"{tower}_{size}": 4 for tower in ("encoder", "decoder") for size in ("attention_heads", "ffn_dim")}
    reference = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, init_std=0.3)).eval()
    reference.save_pretrained(tmp_path / "base")
    model, _ = AutoEasyDeLModelForSeq2SeqLM.from_pretrained(tmp_path / "base", precision="highest")
    add_adapters(model, LoRA(r=3, lora_alpha=9, target_modules=["q_proj", "fc1"]))
    before = np.asarray(model(IDS, decoder_input_ids=IDS).logits)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.2 if "lora" in jax.tree_util.keystr(path) else leaf, model.params
    )
    ours = np.asarray(model.apply(params, IDS, decoder_input_ids=IDS).logits)
    assert np.abs(ours - before).max() > 0.02
    save_adapters(model, tmp_path / "adapter", params)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(any(part in name for name in saved) for part in ("encoder.layers", "decoder.layers", "encoder_attn"))
    loaded = peft.PeftModel.from_pretrained(reference, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = loaded(torch.tensor(IDS), decoder_input_ids=torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
