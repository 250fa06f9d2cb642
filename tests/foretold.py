"""Models without weights, whose programs are compiled and never run: for 8 CPUs, or for TPUs that are not there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from easydel.aot.hlo import Collective, collectives
from easydel.aot.tracing import placed_shapes
from easydel.auto import choose_family
from easydel.config import HFConfig
from easydel.model import BaseNNXModule
from easydel.policy import Policy
from easydel.sharding import PartitionAxis
from easydel.tree import Tree

BF16 = jnp.dtype("bfloat16")
needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")


def llama(**sizes: Any) -> dict[str, Any]:
    """The config of a small model, in which nothing else is as large as the head or the token vectors."""
    small = {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512,
    }  # fmt: skip
    return {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, **small, **sizes}


def built(config: dict[str, Any], mesh: Mesh, axes: PartitionAxis | None = None, **policy: Any) -> tuple[Any, Tree]:
    """The model of a config, in bfloat16, and its parameters as shapes split over the mesh."""
    family = choose_family(HFConfig(config), encoder_decoder=False)
    own = family.configured(HFConfig(config))
    record, names = family.record(own)
    policy = {"dtype": BF16, "param_dtype": BF16} | policy
    axes = (axes or PartitionAxis()).resolve(mesh.axis_names)
    model = BaseNNXModule(record, own, Policy(mesh=mesh, axes=axes, **policy), names)
    return model, placed_shapes(model)


def sent_by(model: Any, traced: Any) -> list[Collective]:
    return collectives(traced.lower().compile().as_text(), model.policy.mesh.shape)


def as_large_as(elements: int, found: Sequence[Collective]) -> list[Collective]:
    return [one for one in found if one.largest >= elements]


OPERATION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(([^)]*)\)")
ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\](\{[^}]*\})?")
MOVES_NOTHING = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "custom-call")


def read_from_memory(text: str) -> float:
    """Bytes that a TPU program reads from its memory (HBM), by its text: operands not in VMEM, which is `S(1)`.

    Programs with loops are not counted right. XLA's own "bytes accessed" counts VMEM, too.
    """
    kinds: dict[str, str] = {}
    total = 0.0
    for line in text[text.index("\nENTRY") :].splitlines():
        if (found := OPERATION.match(line)) is None:
            continue
        name, kind, operation, operands = found.groups()
        kinds[name] = kind
        kernel = 'custom_call_target="tpu_custom_call"' in line
        if (operation in MOVES_NOTHING and not kernel) or operation.endswith("-done"):
            continue
        if operation == "slice-start":  # of an array: (that, the slice, ...)
            total += [size for size, _ in _arrays(kind)][1]
            continue
        arrays = (
            array for operand in re.findall(r"%([\w.\-]+)", operands) for array in _arrays(kinds.get(operand, ""))
        )
        total += sum(size for size, in_vmem in arrays if not in_vmem)
    return total


def made_by(text: str) -> list[tuple[str, int]]:
    """The arrays that a program makes, loops and branches included: what makes each, and the number of its elements.

    Those within a fusion are not made, and what is fetched into fast memory meanwhile (`copy-start`) is left out.
    """
    made, fused = [], False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            fused = line.startswith("%fused_computation")
        found = None if fused else OPERATION.match(line)
        if found is not None and found[3] not in (*MOVES_NOTHING, "while", "conditional", "copy-start", "copy-done"):
            sizes = [sizes for _, sizes, _ in ARRAY.findall(found[2])]
            made += [(found[1], math.prod(int(size) for size in each.split(",") if size)) for each in sizes]
    return made


def _arrays(kind: str) -> Iterator[tuple[float, bool]]:
    """The bytes of each array of a type, and whether it is in fast memory."""
    for bits, sizes, layout in ARRAY.findall(kind):
        count = np.prod([int(size) for size in sizes.split(",") if size])
        yield float(count) * int(bits) / 8, "S(" in layout
