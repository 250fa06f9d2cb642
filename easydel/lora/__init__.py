"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), with the names and files of PEFT.

An adapted Linear computes y = W x + scale * B A x. Its adapters stand beside its kernel among the model's parameters,
`.../q_proj/lora_A` [r, in] and `.../q_proj/lora_B` [out, r], always in float32; the kernel may be int8. So everything
that takes parameters also works with adapters: `apply`, `generate`, sharding, scanned layers, training.
"""

from easydel.lora.adapters import add_adapters, merge_adapters
from easydel.lora.files import load_adapters, read_lora, save_adapters
from easydel.lora.linear import ALL_LINEAR, AdaptedLinear, LoRA

__all__ = [
    "ALL_LINEAR",
    "AdaptedLinear",
    "LoRA",
    "add_adapters",
    "load_adapters",
    "merge_adapters",
    "read_lora",
    "save_adapters",
]
