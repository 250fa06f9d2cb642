"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), with the names and files of PEFT.

An adapted Linear computes y = W x + scale * B A x. Its adapters stand beside its kernel among the model's parameters,
`.../q_proj/lora_A` [r, in] and `.../q_proj/lora_B` [out, r], always in float32; the kernel may be int8. So everything
that takes parameters also works with adapters: `apply`, `generate`, sharding, scanned layers, training. Or adapters are
added to the tensors of a checkpoint while these are read (`onto.py`), and the model that results has none.
"""

from easydel.lora.adapters import add_adapters, merge_adapters
from easydel.lora.files import save_adapters
from easydel.lora.load import load_adapters
from easydel.lora.modules import AdaptedLinear
from easydel.lora.opened import open_adapters, read_lora
from easydel.lora.record import ALL_LINEAR, LoRA

__all__ = [
    "ALL_LINEAR",
    "AdaptedLinear",
    "LoRA",
    "add_adapters",
    "load_adapters",
    "merge_adapters",
    "open_adapters",
    "read_lora",
    "save_adapters",
]
